"""Word error rate and time at every setting: a table, a plot, and transcripts.

  python -m sew_jax.main --config=configs/evaluate.py --config.init_from=runs/finetune
  python -m sew_jax.main --config=configs/evaluate.py --config.init_from=runs/finetune --config.data=/data/LibriSpeech \\
    --config.split=test-clean --config.settings=s1q1k1,s2q1k1,s2q1.1.2.2k1

Needs a fine-tuned model and transcribed audio. The small model at 8 settings took 57 s for 5 minutes of speech on 2 CPU
cores, 5 timed rounds included; the tables are in the README.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "evaluate"
    config.init_from = ""  # workdir of a finetune run, or hf:PATH
    config.data = "demo"
    config.split = "test"
    config.settings = ""  # names joined by commas; empty: the settings it was trained on
    config.repeats = 5  # timed rounds after the warm-up
    config.dtype = ""  # float32 or bfloat16; empty: as in training
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.input = ConfigDict()
    config.input.batch_seconds = 250.0  # audio of a batch (SEW: 4 M samples)
    config.input.buckets = 4
    config.input.max_bad = 10
    config.input.workers = 0
    config.input.threads = 4
    return config
