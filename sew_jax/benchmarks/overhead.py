"""The part `overhead`: what an hour of pre-training spends beside its updates, and what decoding of as much takes."""

import contextlib
import io
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sew_jax.benchmarks.contest import Bench, Child
from sew_jax.benchmarks.input import open_batches
from sew_jax.checkpoints.checkpointer import Checkpoints
from sew_jax.compression import Compression, Draw
from sew_jax.console import Progress, say
from sew_jax.data.pipeline import read_ahead
from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding.greedy import greedy
from sew_jax.metrics.metrics_file import MetricsFile
from sew_jax.models.sizes import model_options
from sew_jax.training.reporter import Reporter
from sew_jax.training.setup import open_task
from sew_jax.training.step import OfRun, make_step, new_state
from sew_jax.training.task import Task

_ROWS, _BATCHES = 200, 20  # that are timed
_HOURS = 20  # of which saves are counted


def saves_an_hour(recipe: ConfigDict, step: float) -> float:
    """By updates and by time, as training saves, at so many seconds an update."""
    every, log_every, late = recipe.checkpoint_every, recipe.log_every, 60 * (recipe.checkpoint_minutes or math.inf)
    updates, saves, last = max(round(_HOURS * 3600 / step), 1), 0, 0
    for number in sorted({*range(log_every, updates + 1, log_every), *range(every, updates + 1, every)}):
        if number % every == 0 or (number % log_every == 0 and (number - last) * step >= late):
            saves, last = saves + 1, number
    return saves / (updates * step / 3600)


def measure(config: ConfigDict, workdir: Path, report: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a save, a row of metrics and a transcript, and their share of an hour of updates; the wait for audio.

    Raises:
      UserError: the data do not fit.
    """
    step = report["training"]["settings"][0]["seconds"]["median"] if "training" in report else config.step_seconds
    saves = saves_an_hour(config.recipe, step)
    say(f"  overhead of pre-training {config.size}, an update each {step:.3g} s, {saves:.2g} checkpoints an hour")
    with (
        tempfile.TemporaryDirectory(dir=workdir) as folder,
        Child("overhead", _costs, config, Path(folder), step) as child,  # whose memory is its own
    ):
        costs = dict(child.about)
        wait = costs.pop("input_wait")
    updates = 3600 / step
    spent = {
        "saving": costs["save_seconds"] * saves,
        "metrics": costs["row_seconds"] * updates,
        "decoding": costs["decode_seconds"],
    }
    share = sum(spent.values()) / 3600
    say(
        f"    a save holds the loop for {costs['save_seconds']:.2f} s and is on disk after "
        f"{costs['written_seconds']:.1f} s; a row of metrics takes {1000 * costs['row_seconds']:.2f} ms; "
        f"an hour of audio is decoded to text in {costs['decode_seconds']:.2f} s"
    )
    each = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in spent.items())
    say(f"    in an hour of training, and of audio decoded: {each}: {share:.3%} of it")
    say(
        f"    input: {_BATCHES} batches of {config.batch_seconds:g} s of audio, one each {step:.3g} s: "
        f"waited {wait:.3%} of the time"
    )
    return {"overhead": {"step_seconds": step, **costs, "seconds_an_hour": spent, "share": share, "input_wait": wait}}


def _costs(config: ConfigDict, folder: Path, step: float) -> Bench:
    """Measures, where a Child is built; nothing is left to run."""
    config.recipe.data, config.recipe.split = config.data, config.split
    config.recipe.model, config.recipe.head = map(ConfigDict, model_options(config.size))
    task = open_task(config.recipe)
    state = jax.jit(lambda key: new_state(task.init(key), task.optimizer))(jax.random.key(0))
    save, written = _time_saving(state, folder)
    found = {
        "save_seconds": save,
        "written_seconds": written,
        "row_seconds": _time_rows(config, task, state, folder),
        "decode_seconds": _time_decoding(),
        "input_wait": _input_wait(config, step),
    }
    return Bench({}, {}, found)


def _time_saving(state: Any, folder: Path) -> tuple[float, float]:
    """Seconds that a save holds the loop, and until it is on disk; the first save of a process is not counted."""
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        for step in (1, 2):
            begin = time.perf_counter()
            checkpoints.save(state, step, {"step": step})
            blocked = time.perf_counter() - begin
            checkpoints.wait()
            written = time.perf_counter() - begin
    return blocked, written


def _time_rows(config: ConfigDict, task: Task, state: Any, folder: Path) -> float:
    """Seconds that an update's metrics take from the device to the file and the screen."""
    with read_ahead(open_batches(config.data, config.split, config.batch_seconds), workers=0, threads=1) as stream:
        batch = next(stream)
    step = make_step(task.micro_loss, task.optimizer, task.schedule, accumulate=1)
    arrays = {key: batch.arrays[key] for key in ("wave", "length", "crop")}
    drawn = Draw(Compression())
    run = OfRun(jax.random.key(config.recipe.seed), jnp.array(config.recipe.num_steps))
    _, shapes = jax.eval_shape(lambda state, arrays: step(state, arrays, run, drawn), state, arrays)
    scalars = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    with (
        contextlib.closing(MetricsFile(folder / "metrics.jsonl", 0)) as metrics,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        reporter = Reporter(config.recipe, task, metrics, Progress(config.recipe.num_steps))
        begin = time.perf_counter()
        for update in range(1, _ROWS + 1):
            reporter.read(update, drawn, batch, scalars, 0.0)
        return (time.perf_counter() - begin) / _ROWS


def _time_decoding() -> float:
    """Seconds of greedy decoding of an hour of audio: 240 utterances of 15 s, three frames of five blank."""
    vocabulary, random = Vocabulary(LETTERS), np.random.default_rng(0)
    symbols = random.integers(4, len(LETTERS), size=(240, 750)) * (random.random((240, 750)) < 0.4)
    begin = time.perf_counter()
    for path in symbols:
        greedy(path, vocabulary)
    return time.perf_counter() - begin


def _input_wait(config: ConfigDict, step: float) -> float:
    """The share of time that a device waits which takes a batch each `step` seconds."""
    waited = 0.0
    with read_ahead(open_batches(config.data, config.split, config.batch_seconds), workers=0, threads=4) as stream:
        for count in range(_BATCHES + 1):
            begin = time.perf_counter()
            next(stream)
            if count:  # the first one is the start of the run
                waited += time.perf_counter() - begin
            time.sleep(step)
    return waited / (waited + _BATCHES * step)
