"""Any speech as a dataset of ArrayRecord files, which training reads without opening a file for each utterance.

  python -m sew_jax.main --config=configs/prepare.py --config.data=/data/LibriSpeech --workdir=runs/librispeech
  python -m sew_jax.main --config=configs/pretrain.py --config.data=runs/librispeech --config.split=train-clean-100

Takes a folder in LibriSpeech's layout (its archives unpacked with tar xf), a folder of audio with a .txt beside each
file, a manifest or corpus of another form (docs/data.md), or tfds:NAME where TensorFlow is installed. Audio of any rate
and width becomes 16 kHz FLAC of one channel and 16 bits; what is that already is copied. Long recordings without
transcripts are cut at pauses; the index says where each piece came from. `tfds.data_source` reads the result, without
TensorFlow. A run that was killed goes on with the same command and ends with the same bytes.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "prepare"
    config.data = "demo"
    config.split = ""  # splits joined by commas; empty: all folders that are named like splits, or one split of all
    config.name = "speech"  # of the dataset
    # auto: audio without a transcript is rejected where most of its split has one; or required, optional
    config.transcripts = "auto"
    config.min_seconds = 0.1
    config.cut_seconds = 30.0  # audio without a transcript that is longer is cut at pauses into pieces no longer
    config.max_seconds = 600.0  # longer audio with a transcript, which cannot be cut, is rejected
    config.workers = -1  # processes; -1: as many as cores
    return config
