"""One setting of a trained model as a folder that transformers loads.

  python -m sew_jax.main --config=configs/export.py --config.init_from=runs/finetune --workdir=runs/export
  python -m sew_jax.main --config=configs/export.py --config.init_from=runs/finetune --config.setting=s2q1k1 --config.drop_tail=True

Squeeze 1 becomes a Wav2Vec2 model, a larger one an SEW model; the log-mel front end and pooling exist in neither. Takes
seconds on a CPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "export"
    config.init_from = ""  # workdir of a pretrain or finetune run, or hf:PATH
    config.setting = "s1q1k1"
    config.format = "hf"
    config.drop_tail = False  # SEW drops the last frames that fill no window; our models keep them
    return config
