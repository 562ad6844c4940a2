"""Per-layer settings of pooling that are better than uniform factors at equal cost: a search on a dev split.

  python -m sew_jax.main --config=configs/search.py --config.init_from=runs/finetune
  python -m sew_jax.main --config=configs/search.py --config.init_from=runs/finetune --config.data=/data/LibriSpeech \\
    --config.dev_split=dev-other --config.split=test-other --config.trials=400

Each trial is a setting: all uniform ones first, then changes of single layers, and what these suggest. The front, and
that of uniform settings, are then evaluated on `split` as configs/evaluate.py does. Needs a fine-tuned model and
transcribed audio.
"""

from ml_collections import ConfigDict

from configs import evaluate


def get_config() -> ConfigDict:
    config = evaluate.get_config()
    config.mode = "search"
    config.dev_split = "dev"  # errors are counted on it
    config.trials = 200  # settings that are tried
    config.squeeze = ()  # factors that may be chosen; empty: those it was trained on
    config.factors = (1, 2, 4)  # for the queries, and for the keys and values, of each layer
    config.seed = 0
    del config.settings  # the search names them
    return config
