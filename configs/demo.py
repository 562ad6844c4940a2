"""The demo: pre-train, fine-tune and evaluate a small model on synthetic speech, in one go.

  python -m sew_jax.main --config=configs/demo.py

Needs 2 CPU cores and 4 GB; everything it reads it makes itself. What it reached on voices that it had
not heard, and in which time, is in docs/results.md.
"""

from ml_collections import ConfigDict

from configs import evaluate, finetune, pretrain


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "demo"
    config.data = "demo"
    config.seed = 0
    config.dtype = "float32"
    config.log_every = 100
    config.checkpoint_every = 500
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})

    config.compression = ConfigDict()
    config.compression.squeeze = (1, 2, 4)
    config.compression.query_pool = (1, 2)
    config.compression.kv_pool = (1,)
    config.compression.names = ""

    config.pretrain = pretrain.get_config("demo")
    config.pretrain.num_steps = 800
    config.pretrain.input.crop_seconds = 1.5  # a sixth of it is padding; of 2 s, more than a third
    config.pretrain.input.batch_seconds = 18.0
    config.pretrain.eval.split = ""  # what held-out bits say of a run matters to longer ones
    config.finetune = finetune.get_config()
    config.finetune.num_steps = 1600
    config.finetune.input.buckets = 1
    config.finetune.input.batch_seconds = 14.5
    config.finetune.eval.every = 800
    config.evaluate = evaluate.get_config()
    config.evaluate.input.buckets = 1
    config.evaluate.repeats = 2
    return config
