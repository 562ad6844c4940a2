"""How fast this machine computes, reads audio and starts a run.

  python -m sew_jax.main --config=configs/benchmark.py
  python -m sew_jax.main --config=configs/benchmark.py --config.size=sew_tiny --config.batch=8 --config.dtype=bfloat16
  python -m sew_jax.main --config=configs/benchmark.py --config.parts=runtimes --config.batch=1 \\
    --config.settings=s1q1k1,s2q1k1,s4q2k2
  python -m sew_jax.main --config=configs/benchmark.py --config.parts=input \\
    --config.data=/data/LibriSpeech --config.split=dev-clean

`inference`, `training`: time, memory, FLOPs and compile time of a published size at each setting, random weights,
beside the same work by transformers where torch and transformers are installed. All take turns, so that none has the
machine's better minutes.
`runtimes`: the same inference at each setting by JAX, ONNX Runtime and OpenVINO, in each precision that they have on a
CPU, beside transformers in float32 and bfloat16; what is not installed is left out.
`overhead`: what an hour of training spends beside updates: checkpoints, rows of metrics, waiting for audio; and
decoding.
`input`: reads a corpus of files, and a dataset prepared from it, and compares with plain decoding by soundfile;
watches memory over many batches; plans a synthetic dataset of millions. Took 10 minutes for 5.7 h of speech on 2 CPU
cores.
`start`: the demo twice up to its first update, before and after its programs are in a cache (4 minutes on 2 CPU
cores).

Needs Linux, and one device. Figures are in docs/results.md.
"""

from ml_collections import ConfigDict

from configs import prepare, pretrain
from sew_jax.compression import settings_table


def get_config() -> ConfigDict:
    recipe = pretrain.get_config("base")
    config = ConfigDict()
    config.mode = "benchmark"
    config.parts = "inference,training"  # what to measure, in this order; others: runtimes, overhead, input, start
    config.rounds = 3  # in which all that is compared takes turns

    # inference and training
    config.size = "base"  # as in configs/pretrain.py
    config.dtype = "float32"  # or bfloat16
    config.peers = True  # transformers too, where it is installed
    config.profile = False  # also write WORKDIR/profile/CASE, for xprof and TensorBoard
    config.runtimes = "jax,onnxruntime,openvino"  # of the part runtimes, in each of these precisions that they have
    config.dtypes = "float32,bfloat16,int8"
    # of inference and runtimes; the first is what others are compared with
    config.settings = ",".join(map(str, settings_table(**recipe.compression)))
    config.batch = "1,4"  # utterances at once, a table for each
    config.seconds = 15.0  # of each
    config.train_settings = "s1q1k1"
    config.train_batch = 2
    config.train_seconds = 15.6  # base's crops
    config.recipe = recipe  # of updates; its model and data are those named here
    config.recipe.input.min_seconds = 0.5  # the demo's utterances are short

    # overhead: an update, where the part training has not measured one before
    config.step_seconds = 1.0

    # input; overhead reads the same data
    config.data = "demo"
    config.split = "train"
    config.utterances = 2_000_000  # of the synthetic dataset
    config.batches = 10_000  # while memory is watched
    config.read_seconds = 8.0  # that each way of reading is timed, in each round
    config.batch_seconds = 88.0  # one device's share of a batch of wav2vec 2.0 base
    config.prepare = prepare.get_config()  # its data and split are those above
    return config
