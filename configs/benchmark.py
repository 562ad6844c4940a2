"""How fast a run starts and how fast audio reaches the trainer, on this machine.

  python -m sew_jax.main --config=configs/benchmark.py
  python -m sew_jax.main --config=configs/benchmark.py --config.data=/data/LibriSpeech --config.split=dev-clean

`start`: the demo twice up to its first update, before and after its programs are in a cache (4 minutes on 2 CPU cores).
`input`: reads a corpus of files, and a dataset prepared from it, and compares with plain decoding by soundfile; watches memory over
many batches; plans a synthetic dataset of millions. Needs Linux; took 10 minutes for 5.7 h of speech on 2 CPU cores. Figures are in
the README.
"""

from ml_collections import ConfigDict

from configs import prepare


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "benchmark"
    config.parts = "start,input"  # what to measure
    config.data = "demo"
    config.split = "train"
    config.utterances = 2_000_000  # of the synthetic dataset
    config.batches = 10_000  # while memory is watched
    config.seconds = 8.0  # that each way of reading is timed, in each round
    config.rounds = 3
    config.batch_seconds = 88.0  # one device's share of a batch of wav2vec 2.0 base
    config.prepare = prepare.get_config()  # its data and split are those above
    return config
