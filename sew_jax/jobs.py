"""Training and evaluation from Python: what the command line runs, of a config as `configs/` makes it."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from sew_jax.buckets import as_path, check_bucket
from sew_jax.checks.check import check_config
from sew_jax.errors import UserError
from sew_jax.evaluation.tradeoff import Point
from sew_jax.names import in_language
from sew_jax.storage import errors_in_words

if TYPE_CHECKING:
    from sew_jax.training.train import Summary


def train(config: ConfigDict, workdir: str | os.PathLike) -> "Summary":
    """Pre-trains or fine-tunes, as the config of configs/pretrain.py or configs/finetune.py says; resumes by itself.

    Raises:
      UserError: config, data or an earlier run in the workdir do not fit; or training diverged.
      Unavailable: storage does not answer; called again, it goes on.
    """
    from sew_jax.training.train import train as run

    return _run(run, config, workdir, "pretrain", "finetune")


def evaluate(config: ConfigDict, workdir: str | os.PathLike) -> list[Point]:
    """Word error rate, or accuracy of labels, and time at every setting, as the config of configs/evaluate.py says.

    Raises:
      UserError: config, data or checkpoint do not fit.
      Unavailable: storage does not answer.
    """
    from sew_jax.evaluation.evaluate import evaluate as run  # which draws with matplotlib

    return _run(run, config, workdir, "evaluate")


def _run(run: Callable[..., Any], config: ConfigDict, workdir: str | os.PathLike, *modes: str) -> Any:
    """A config of one of these modes as the command line runs it."""
    if config.get("mode") not in modes:
        raise UserError(f"mode: {config.get('mode')!r} is that of another config; take {' or '.join(modes)}.py")
    check_config(config)
    with errors_in_words():
        folder = as_path(workdir)
        check_bucket(folder, "workdir")
        return run(in_language(config), folder)
