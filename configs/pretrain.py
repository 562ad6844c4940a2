"""Pre-training with stochastic compression.

  python -m sew_jax.main --config=configs/pretrain.py              # a small model on the embedded synthetic speech
  python -m sew_jax.main --config=configs/pretrain.py:sew_tiny --config.data=/data/LibriSpeech \\
    --config.split=train-clean-100,train-clean-360,train-other-500

  # a released checkpoint goes on, in another language or at a table of settings (docs/new-language.md)
  python -m sew_jax.main --config=configs/pretrain.py:continued --config.init_from=hf:facebook/wav2vec2-xls-r-300m \\
    --config.data=/data/dutch,/data/frisian --config.split=

  # new heads on the body of a released checkpoint of wav2vec 2.0, HuBERT or SEW
  python -m sew_jax.main --config=configs/pretrain.py:inherit --config.init_from=hf:PATH \\
    --config.data=/data/LibriSpeech --config.split=train-clean-100,train-clean-360,train-other-500

  # a released encoder made cheap: its own features, learnt at many settings, of audio alone
  python -m sew_jax.main --config=configs/pretrain.py:inherit,distill --config.init_from=hf:PATH \\
    --config.data=/data/audio --config.split=

Arguments, separated by commas: a size (demo, base, large, large_lv60k, xlsr_1b, sew_tiny, sew_small, sew_mid; slim_30,
slim_50, slim_70, slim_100, slim_130, slim_200 and small of Liu et al. 2024; cpu_hour and gpu_day, for 2 CPU cores in an
hour and one GPU in a day; or inherit: that of init_from), `stochastic` (the default: squeeze 1 to 4 with query and
key-value pooling of 1 and 2) or `fixed` (one setting: s1q1k1 for wav2vec 2.0, s2q1k1 for SEW, as published), and
`contrastive` (the default), `data2vec2` or `distill` (docs/released-checkpoints.md), with the recipe of that objective.
`continued` is `inherit` from where that checkpoint's pre-training ended: its heads and codebook, the last temperature,
a low rate, and languages of little speech read more often. large is wav2vec 2.0's for LibriSpeech, large_lv60k that for
Libri-Light's 60,000 hours. A batch of the published sizes is that of the papers (64 GPUs x 1.4 M samples, 128 x 1.2 M
for both large ones): on fewer devices raise --config.accumulate, and check the first screen. xlsr_1b has XLS-R's
architecture and large's recipe.

Needs: nothing but 2 CPU cores for the small model, whose 6,000 updates on 6 h of recorded speech took 14 minutes
there and reached a contrastive accuracy of 0.19 (chance 0.01) and a loss of 5.5 bits (chance 6.66), before residual
up-samplers. The published sizes are for a GPU box or a TPU slice; none has been trained to the end here.
"""

import dataclasses
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sew_jax.errors import UserError
from sew_jax.models.config import ARCHITECTURE, HEAD_ARCHITECTURE, Data2VecConfig
from sew_jax.models.sizes import model_options
from sew_jax.names import split_names


class Recipe(NamedTuple):
    """What pre-training of a size takes."""

    num_steps: int
    lr: float
    warmup: float  # fraction of num_steps
    total: float  # where the rate would reach 0, as a fraction of num_steps
    temperature_end: float  # of Gumbel's, which starts at 2.0
    anneal: float  # the fraction of num_steps after which it is there: above 1 training ends hotter
    batch_seconds: float  # audio of an update, all devices together
    crop_seconds: float
    squeeze: int  # with `fixed`
    squeezes: tuple[int, ...] = (1, 2, 3, 4)  # without
    span: int = 10  # masked frames in a row: 200 ms at 50 Hz
    accumulate: int = 1


def _slim(num_steps: int, lr: float) -> Recipe:
    """Liu et al. 2024: fairseq's base but for the rate; its warm-up and temperature are counted in updates."""
    return Recipe(num_steps, lr, 32_000 / num_steps, 1.0, 0.5, 277_258 / num_steps, 5600.0, 15.6, 1)


# Sources: as of SIZES in sew_jax/models/sizes.py, and wav2vec 2.0's section 4.2. fairseq multiplies the temperature by
# 0.999995 an update, which takes 277,258 updates to 0.5 and 599,145 to 0.1. SEW stops a schedule of 400,000 updates
# after 100,000.
_LARGE = Recipe(250_000, 3e-4, 0.08, 1.0, 0.1, 2.397, 9600.0, 20.0, 1)
_SEW = Recipe(100_000, 5e-4, 0.32, 4.0, 0.5, 2.773, 5600.0, 15.6, 2)
RECIPES = {
    "demo": Recipe(1500, 2e-3, 0.08, 1.0, 0.5, 0.693, 24.0, 8.0, 1),
    "base": Recipe(400_000, 5e-4, 0.08, 1.0, 0.5, 0.6931, 5600.0, 15.6, 1),
    "large": _LARGE,
    # the file's; the paper gives 600,000 updates at 3e-4 for LV-60k
    "large_lv60k": Recipe(1_000_000, 5e-3, 0.032, 1.0, 0.1, 0.5991, 9600.0, 20.0, 1),
    "xlsr_1b": _LARGE,
    "sew_tiny": _SEW,
    "sew_small": _SEW,
    "sew_mid": _SEW,
    # a GPU of their batch is base's, 1.4 M samples; how many GPUs they took is not in the files: base's 64
    "slim_30": _slim(550_070, 4e-4),
    "slim_50": _slim(499_953, 4e-4),
    "slim_70": _slim(454_811, 4e-4),
    "slim_100": _slim(400_000, 4e-4),
    "slim_130": _slim(363_047, 4e-4),
    "slim_200": _slim(297_370, 3e-4),
    "small": _slim(400_000, 5e-4),
    # one GPU in a day, 2 CPU cores in an hour: docs/scaling.md says of which machine
    "gpu_day": Recipe(25_000, 5e-4, 0.08, 1.0, 0.5, 0.693, 4320.0, 15.6, 1, accumulate=24),
    "cpu_hour": Recipe(5_000, 2e-3, 0.08, 1.0, 0.5, 0.693, 48.0, 8.0, 1, squeezes=(1, 2), span=5),
}


# What data2vec 2.0 has otherwise, by section. Sources: base_audio_only_task.yaml and large_audio_only_task.yaml (for
# LV-60k) in fairseq's examples/data2vec/config/v2; `demo` and `cpu_hour` are this project's
_DATA2VEC_BASE: dict[str, dict[str, Any]] = {
    "": dict(num_steps=400_000),
    "model": dict(conv_norm="layer", normalize_wave=True, feature_grad_scale=1.0, input_dropout=0.0),
    "optim": dict(lr=7.5e-4, warmup=0.02),
    "input": dict(batch_seconds=500.0, crop_seconds=20.0),
}
_DATA2VEC_LARGE: dict[str, dict[str, Any]] = {
    "": dict(num_steps=600_000),
    "model": _DATA2VEC_BASE["model"] | dict(dropout=0.1, attention_dropout=0.1, layerdrop=0.0, pre_norm=False),
    "optim": dict(lr=4e-4, warmup=1 / 60, clip_norm=1.0),
    "input": dict(batch_seconds=960.0, crop_seconds=20.0),
    "data2vec": dict(
        clones=12,
        mask_ratio=0.55,
        mask_adjust=0.1,
        top_layers=16,
        decoder_width=768,
        ema_start=0.9997,
        ema_end=1.0,
        ema_anneal=0.5,
    ),
}
_DATA2VEC_SMALL: dict[str, dict[str, Any]] = {
    "data2vec": dict(clones=4, top_layers=4, decoder_width=64, ema_start=0.99, ema_end=0.999, ema_anneal=0.5),
}
DATA2VEC = {
    "demo": _DATA2VEC_SMALL,
    "cpu_hour": _DATA2VEC_SMALL,
    "large": _DATA2VEC_LARGE,
    "large_lv60k": _DATA2VEC_LARGE,
}


# What a trained encoder takes to learn a table of settings from its own features, by section: this project's. Nothing
# is left out, so that the setting that it was trained at begins with a loss of zero, and its extractor stays
DISTILL: dict[str, dict[str, Any]] = {
    "": dict(objective="distill", num_steps=20_000),
    "model": dict(
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        input_dropout=0.0,
        layerdrop=0.0,
        feature_grad_scale=0.0,
    ),
    "optim": dict(lr=1e-4, warmup=0.1, total=1.0, weight_decay=0.0),
    "input": dict(batch_seconds=1600.0),
}
DISTILL_SMALL = DISTILL | {
    "": dict(objective="distill"),
    "optim": DISTILL["optim"] | dict(lr=5e-4),
    "input": {},
}
# What goes on from the end of a checkpoint's own schedule; None: as there. The rate is a sixth of large's and a tenth
# of base's: at most a fifth keeps what is known (OFA, arXiv 2211.02332, went on for 5,000 updates at 8e-5 or less).
# XLS-R reads its languages in proportion to the roots of their hours
CONTINUED: dict[str, dict[str, Any]] = {
    "": dict(num_steps=20_000, checkpoint_every=1000),
    "temperature": dict(start=None, end=None, anneal=1.0),
    "optim": dict(lr=5e-5, warmup=0.1, total=1.0),
    "input": dict(corpus_exponent=0.5, batch_seconds=1600.0),
    "eval": dict(every=1000),
}


_TABLES, _OBJECTIVES = ("stochastic", "fixed"), ("contrastive", "data2vec2", "distill")
_SIZES = (*RECIPES, "inherit")


def size_of(arguments: str) -> str:
    """The size that is named, or demo; what is continued is as init_from's.

    Raises:
      UserError: a name is unknown, or two exclude each other.
    """
    names = split_names(arguments)
    for name in names:
        if name not in (*_SIZES, *_TABLES, *_OBJECTIVES, "continued"):
            raise UserError(
                f"pretrain:{arguments}: {name!r} is unknown; choose one of {', '.join(_SIZES)}, and beside it of "
                f"{', '.join((*_TABLES, *_OBJECTIVES))} and continued"
            )
    for kind in (_SIZES, _TABLES, _OBJECTIVES):
        if len(named := [name for name in names if name in kind]) > 1:
            raise UserError(f"pretrain:{arguments}: {' and '.join(named)} exclude each other; name one")
    unnamed = "inherit" if "continued" in names else "demo"
    return next((name for name in names if name in _SIZES), unnamed)


def get_config(arguments: str = "demo") -> ConfigDict:
    size, fixed = size_of(arguments), "fixed" in split_names(arguments)
    small, published = size in ("demo", "cpu_hour"), "base" if size == "inherit" else size
    model, head = model_options(published)
    recipe = RECIPES[published]
    distill = "distill" in split_names(arguments)
    if size == "inherit" or distill:  # None: as the checkpoint that init_from names
        model |= dict.fromkeys(ARCHITECTURE)
        head |= dict.fromkeys(HEAD_ARCHITECTURE)

    if distill:
        model["upsampler"] = None  # what it was trained at stays what it is
    elif not fixed:
        model["upsampler"] = "residual"  # what several squeeze factors can share

    config = ConfigDict()
    config.mode = "pretrain"
    config.data = "demo"  # a folder in LibriSpeech's layout, a manifest, or several joined by commas
    config.split = "train"  # splits joined by commas
    config.init_from = ""  # a workdir, or hf:PATH, whose parameters to start from
    # contrastive: wav2vec 2.0's, with head, mask and temperature; data2vec2: regression of a teacher, with data2vec;
    # distill: regression of init_from's own features
    config.objective = "contrastive"
    config.seed = 0
    config.num_steps = recipe.num_steps
    config.checkpoint_every = 500 if small else 2000
    config.checkpoint_minutes = 15.0  # and so often, looked at every log_every updates; 0: updates alone count
    config.keep_every = 0  # updates whose checkpoints stay for ever; of others the newest two do
    config.stall_minutes = 60.0  # without an update: the run ends with status 75, to be started again; 0: never
    config.log_every = 50
    config.dtype = "float32" if small else "bfloat16"  # of activations; parameters stay float32
    config.resume = ""  # keys, joined by commas, that may differ from the run in the workdir
    config.accumulate = recipe.accumulate  # micro-batches of an update
    # what is kept for the backward pass: none computes nothing again, dots keeps matrix products, layers the least
    config.remat = "none"
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})  # -1: all devices

    config.model = ConfigDict(model)
    config.head = ConfigDict(head)
    config.data2vec = ConfigDict(dataclasses.asdict(Data2VecConfig()))

    # The table of settings is the product of the three sets, or a list of names (s1q1k1,s2q1.1.2.2k2,...) where given
    config.compression = ConfigDict()
    config.compression.squeeze = (recipe.squeeze,) if fixed else recipe.squeezes
    config.compression.query_pool = (1,) if fixed else (1, 2)
    config.compression.kv_pool = (1,) if fixed or small else (1, 2)
    config.compression.names = ""

    # Each update computes the table's largest setting, its smallest and one between, on the same input (sandwich rule)
    config.sandwich = ConfigDict()
    config.sandwich.enabled = False  # False: one setting an update, drawn uniformly
    config.sandwich.weight = 0.3  # of the loss of each setting but the largest
    config.sandwich.distill = 0.0  # of its divergence from the largest's distribution

    config.mask = ConfigDict({"prob": 0.65, "span": recipe.span, "min_spans": 2})
    config.temperature = ConfigDict({"start": 2.0, "end": recipe.temperature_end, "anneal": recipe.anneal})
    config.optim = _optim(recipe, small)
    config.eval = _held_out(small)

    config.input = ConfigDict()
    # audio of an update, all devices together
    config.input.batch_seconds = recipe.batch_seconds
    config.input.crop_seconds = recipe.crop_seconds
    config.input.buckets = 1 if small else 4
    config.input.min_seconds = 0.5 if small else 2.0
    config.input.max_seconds = 86_400.0  # longer audio is left out; of long audio an epoch takes crops all over it
    # Of several data: an epoch's audio is shared in proportion to hours ** this: 1 reads all alike,
    # less favours small corpora
    config.input.corpus_exponent = 1.0
    config.input.speed = 0.0  # each reading is played at 1 - speed to 1 + speed times its pace
    config.input.max_bad = 10.0  # damaged utterances that may be skipped; below 1: their share
    config.input.workers = 0  # processes that read audio; 0 reads in threads
    config.input.threads = 4
    if "data2vec2" in split_names(arguments):
        _take_data2vec(config, DATA2VEC.get(published, _DATA2VEC_BASE))
    if distill:
        _take(config, DISTILL_SMALL if small else DISTILL)
    if "continued" in split_names(arguments):
        _take(config, CONTINUED)
    return config


def _take_data2vec(config: ConfigDict, recipe: dict[str, dict[str, Any]]) -> None:
    """The recipe of data2vec 2.0 in the place of the contrastive task's; `inherit` keeps the checkpoint's model."""
    config.objective = "data2vec2"
    _take(config, recipe)
    if config.model.layers is not None:
        config.data2vec.top_layers = min(config.data2vec.top_layers, config.model.layers)


def _take(config: ConfigDict, recipe: dict[str, dict[str, Any]]) -> None:
    for section, values in recipe.items():
        for name, value in values.items():
            part = config[section] if section else config
            if part[name] is not None:
                part[name] = value


def _optim(recipe: Recipe, small: bool) -> ConfigDict:
    optim = ConfigDict()
    optim.lr = recipe.lr
    optim.warmup = recipe.warmup  # fraction of num_steps
    optim.total = recipe.total  # where the rate would reach 0, as a fraction of num_steps
    optim.eps = 1e-6
    optim.weight_decay = 0.01
    optim.clip_norm = 5.0 if small else 0.0
    optim.max_skipped = 10  # updates in a row without a finite loss and gradient; one more ends the run
    return optim


def _held_out(small: bool) -> ConfigDict:
    """Held-out evaluation: the objective's loss at each setting, under fixed masks."""
    held_out = ConfigDict()
    held_out.split = "auto"  # a split of data; auto: dev where the data have one; empty: none
    held_out.every = 500 if small else 5000  # updates
    held_out.settings = ""  # names; empty: all of the table
    held_out.max_seconds = 120.0 if small else 600.0  # audio of it
    return held_out
