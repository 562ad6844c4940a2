"""The demo: pre-train, fine-tune and evaluate a small model on synthetic speech, in one go.

  python -m sew_jax.main --config=configs/demo.py

Needs 2 CPU cores and 4 GB; everything it reads it makes itself. Figures of this recipe and of the one
before it, on voices that it had not heard, are in docs/results.md.
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
    config.compression.squeeze = (1, 2, 3, 4)
    config.compression.query_pool = (1, 2)
    config.compression.kv_pool = (1,)
    config.compression.names = ""

    config.pretrain = pretrain.get_config("demo")
    config.pretrain.num_steps = 1000
    config.pretrain.input.crop_seconds = 2.0
    config.pretrain.eval.settings = "s1q1k1,s2q1k1,s4q1k1"
    config.finetune = finetune.get_config()
    config.finetune.num_steps = 2400
    config.finetune.input.buckets = 1
    config.evaluate = evaluate.get_config()
    config.evaluate.input.buckets = 1
    return config
