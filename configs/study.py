"""The paper's experiment: is one stochastic pre-training as good as dedicated ones? Any data, one command.

  python -m sew_jax.main --config=configs/study.py --workdir=runs/study --config.data=/data/digits
  python -m sew_jax.main --config=configs/study.py:base --workdir=runs/study --config.pretrain_data=/data/LibriSpeech \\
    --config.pretrain.split=train-clean-100,train-clean-360,train-other-500 --config.data=/data/librispeech_10h

Arguments, separated by commas: nothing (the demo's small model), or a size of configs/pretrain.py, with a recipe of
configs/finetune.py where it is not 10h: base, or large,100h. All keys of the three modes are at hand:
--config.pretrain.optim.lr=...

Arms: `stochastic` pre-trains and fine-tunes on the whole table; `dedicated` does both at one setting alone, for each
of `settings`; `specialised` fine-tunes the stochastic pre-training at one setting, for each; `random` fine-tunes on
the table without pre-training; `sandwich` is stochastic with several settings an update; `distilled` is that with
distillation from the largest.

The cost of all of it is printed before anything starts. The same command goes on after a kill; started several times,
on one machine or on many that share the workdir, its processes share the runs. Where they share a GPU, set
XLA_PYTHON_CLIENT_PREALLOCATE=false. It leaves study.html, study.png, study.json and study.csv.

Needs: nothing but 2 CPU cores for the small model.
"""

from ml_collections import ConfigDict

from configs import demo, evaluate, finetune, pretrain
from sew_jax.errors import UserError
from sew_jax.names import split_names


def get_config(arguments: str = "") -> ConfigDict:
    names = split_names(arguments)
    recipes = [name for name in names if name in finetune.RECIPES]
    if len(recipes) > 1:
        raise UserError(f"study:{arguments}: {' and '.join(recipes)} exclude each other; name one")
    size = ",".join(name for name in names if name not in recipes)
    small = _small()

    config = ConfigDict()
    config.mode = "study"
    config.data = "demo"  # with transcripts: of fine-tuning and evaluation
    config.pretrain_data = ""  # of pre-training; empty: data
    config.split = "test"  # of data, to report on; several, joined by commas
    config.dev_split = "dev"  # of data, to choose by
    config.arms = "stochastic,dedicated,specialised,random,sandwich,distilled"
    # What dedicated and specialised models are made for, and all are compared at
    config.settings = "s1q1k1,s2q1k1,s3q1k1,s4q1k1"
    config.seeds = "0,1,2"
    # What all arms get alike: `flop` of the stochastic arm's updates, in pre-training and fine-tuning, or their number
    config.equal = "flop"
    # Rates of fine-tuning, joined by commas: each model's is chosen on dev with the first seed; empty: that of finetune
    config.rates = ""
    config.distill = 1.0  # sandwich.distill of the arm `distilled`, in pre-training and in fine-tuning
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})

    config.pretrain = pretrain.get_config(size) if size else small.pretrain
    config.finetune = finetune.get_config((recipes or ["10h"])[0]) if size or recipes else small.finetune
    config.evaluate = evaluate.get_config() if size else small.evaluate
    config.compression = config.pretrain.compression if size else small.compression
    config.dtype = config.pretrain.dtype if size else small.dtype
    config.log_every = config.pretrain.log_every if size else small.log_every
    config.checkpoint_every = config.pretrain.checkpoint_every if size else small.checkpoint_every
    return config.copy_and_resolve_references()


def _small() -> ConfigDict:
    """The demo's model, trained for longer than the demo can and at every squeeze factor."""
    config = demo.get_config()
    config.compression.squeeze = (1, 2, 3, 4)
    config.pretrain.num_steps = 1000
    config.pretrain.input.crop_seconds = 2.0
    config.pretrain.input.batch_seconds = 24.0
    config.pretrain.eval.split = "auto"
    config.pretrain.eval.settings = "s1q1k1,s2q1k1,s4q1k1"
    config.finetune.num_steps = 2400
    config.finetune.input.batch_seconds = 12.0
    config.finetune.eval.every = 500
    config.evaluate.repeats = 5
    return config
