"""Fine-tuning of a pre-trained model: CTC on transcripts, or labels of utterances or frames (docs/classification.md).

  python -m sew_jax.main --config=configs/finetune.py --config.init_from=runs/pretrain
  python -m sew_jax.main --config=configs/finetune.py:10h --config.init_from=runs/pretrain \\
    --config.data=/data/librispeech_10h --config.split=
  python -m sew_jax.main --config=configs/finetune.py --config.init_from=runs/pretrain --config.task=classify \\
    --config.data=emotions.jsonl

  # a released CTC model made cheap, on audio with transcripts or without
  python -m sew_jax.main --config=configs/finetune.py:10h,stochastic --config.init_from=hf:PATH \\
    --config.data=/data/audio --config.split=

Arguments: nothing (a small model on the embedded synthetic speech), or the recipe of wav2vec 2.0 and SEW for an
amount of speech: 10m, 1h, 10h, 100h; and `stochastic` for a model that writes text already: it learns a table of
settings from its own symbols at the setting that it was trained at (docs/released-checkpoints.md). The architecture
comes from `init_from`. The table may be another than in pre-training; with one row it specialises:
--config.compression.names=s2q1k1

Needs: nothing but 2 CPU cores for the small model; a batch of the recipes is 1,600 s of audio, raise
--config.accumulate until it fits. Reached by the small model, before residual up-samplers: 24.0 % WER on an unseen
speaker's digit strings, with 22 minutes of transcripts, in 11 minutes on 2 CPU cores (flags and table:
docs/results.md). The recipes have not been run to the end here.
"""

from ml_collections import ConfigDict

from sew_jax.errors import UserError
from sew_jax.names import split_names

# updates, learning rate, frozen fraction, channel mask, layer-drop (fairseq's and SEW's configurations)
RECIPES = {
    "10m": (13_000, 5e-5, 10 / 13, 0.25, 0.1),
    "1h": (13_000, 5e-5, 10 / 13, 0.25, 0.1),
    "10h": (20_000, 5e-5, 10 / 20, 0.5, 0.05),
    "100h": (80_000, 3e-5, 0.0, 0.5, 0.1),
}
STOCHASTIC = "stochastic"


def get_config(arguments: str = "") -> ConfigDict:
    recipe, stochastic = _parts(arguments)
    small = not recipe
    num_steps, lr, freeze, channel_prob, layerdrop = RECIPES.get(recipe, (2000, 2e-3, 0.0, 0.0, 0.0))
    time_prob = 0.0 if small else 0.65
    if stochastic:  # nothing is frozen, and the model hears what its teacher hears
        freeze, time_prob, channel_prob, layerdrop = 0.0, 0.0, 0.0, 0.0

    config = ConfigDict()
    config.mode = "finetune"
    config.task = "ctc"  # ctc writes transcripts; classify gives each utterance, frames each 20 ms a manifest's label
    config.init_from = ""  # workdir of a pretrain run (or of a finetune run, to specialise it), or hf:PATH
    config.language = ""  # of a checkpoint of many, such as swh of MMS; empty: the one it was saved with
    # Random weights in place of those of init_from: the baseline that shows what pre-training is worth
    config.from_scratch = False
    config.data = "demo"
    config.split = "train"
    # letters, auto (the characters of the transcripts), or the path of a vocab.json; empty: init_from's, or letters
    config.vocabulary = ""
    config.text_normalizer = ""  # upper, lower, basic (punctuation away), joined by commas; empty: init_from's, or none
    config.seed = 0
    config.num_steps = num_steps
    config.checkpoint_every = 500 if small else 1000
    config.checkpoint_minutes = 15.0  # these three as in pretrain.py
    config.keep_every = 0
    config.stall_minutes = 60.0
    config.log_every = 50
    config.dtype = "float32" if small else "bfloat16"
    config.resume = ""  # keys, joined by commas, that may differ from the run in the workdir
    config.accumulate = 1
    # what is kept for the backward pass: none computes nothing again, dots keeps matrix products, layers the least
    config.remat = "none"
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})

    # Over the pre-trained model's own; SEW's `stable` recipe keeps pre-training's dropouts at 0.1, 0.1, 0, 0.1
    config.model = ConfigDict()
    config.model.dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.activation_dropout = 0.0 if small else 0.1
    config.model.input_dropout = 0.0
    config.model.layerdrop = layerdrop
    config.head = ConfigDict({"dropout": 0.0})

    config.compression = ConfigDict()
    config.compression.squeeze = (1, 2, 3, 4)
    config.compression.query_pool = (1, 2)
    config.compression.kv_pool = (1,) if small else (1, 2)
    config.compression.names = ""

    # Each update computes the table's largest setting, its smallest and one between, on the same input (sandwich rule)
    config.sandwich = ConfigDict()
    config.sandwich.enabled = False  # False: one setting an update, drawn uniformly
    config.sandwich.weight = 0.3  # of the loss of each setting but the largest
    config.sandwich.distill = 0.0  # of its divergence from the largest's distribution

    # The teacher is init_from's model as it was, at its setting; it teaches what has no transcript, too. 0: no teacher
    config.teacher = ConfigDict({"weight": 1.0 if stochastic else 0.0})  # of the divergence from its symbols

    config.mask = ConfigDict()
    config.mask.time_prob = time_prob
    config.mask.time_span = 5 if small else 10
    config.mask.channel_prob = channel_prob
    config.mask.channel_span = 64

    config.optim = _optim(lr, freeze, small)

    config.eval = _held_out(small)

    config.input = ConfigDict()
    config.input.batch_seconds = 12.0 if small else 1600.0
    config.input.buckets = 2 if small else 4
    config.input.min_seconds = 0.1
    config.input.max_seconds = 60.0  # longer utterances are left out, since a transcript cannot be cropped
    config.input.corpus_exponent = 1.0  # as in pretrain.py
    # Each reading is played at 1 - speed to 1 + speed times its pace: what helps most with voices that were not heard
    config.input.speed = 0.1 if small else 0.0
    config.input.max_bad = 10.0  # as in pretrain.py
    config.input.workers = 0
    config.input.threads = 4
    return config


def _parts(arguments: str) -> tuple[str, bool]:
    """The recipe that is named, or nothing, and whether `stochastic` is."""
    names = split_names(arguments)
    stochastic = STOCHASTIC in names
    recipe = "".join(name for name in names if name != STOCHASTIC)
    if recipe and recipe not in RECIPES:
        raise UserError(
            f"finetune:{arguments} is unknown; choose one of {', '.join(RECIPES)}, or nothing for a small model, and "
            f"{STOCHASTIC} beside it for what learns from init_from's own symbols"
        )
    return recipe, stochastic


def _held_out(small: bool) -> ConfigDict:
    """Held-out evaluation: word error rate, greedy."""
    held_out = ConfigDict()
    held_out.split = "auto"  # a split of data; auto: dev where the data have one; empty: none
    held_out.every = 500 if small else 1000  # updates
    held_out.settings = ""  # names; empty: the table's largest and smallest
    held_out.keep_best = True  # the checkpoint of the least mean error rate, which other runs then start from
    held_out.patience = 0  # evaluations without a better one that end the run; 0: none do
    held_out.baseline = ""  # workdir of the same run from random weights, which this one should be ahead of
    return held_out


def _optim(lr: float, freeze: float, small: bool) -> ConfigDict:
    """The optimiser, and the rate over the run."""
    optim = ConfigDict()
    optim.lr = lr
    optim.warmup = 0.1  # tri-stage: fractions of num_steps, and of the rate at its start and end
    optim.hold = 0.4
    optim.initial = 0.01
    optim.final = 0.05
    optim.freeze = freeze  # fraction of num_steps in which the head, and what init_from lacks, are trained alone
    optim.backbone_lr_scale = 1.0  # times the rate, for all that comes from init_from but the head
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.clip_norm = 5.0 if small else 0.0
    optim.max_skipped = 10  # updates in a row without a finite loss and gradient; one more ends the run
    return optim
