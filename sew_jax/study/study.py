"""The paper's experiment with one command: all arms, seeds and rates, shared by any number of processes; the report."""

import contextlib
import json
import signal
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from sew_jax.checks.check import check_config, recorded_defaults
from sew_jax.console import format_duration, say
from sew_jax.errors import Diverged, UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.evaluation.tradeoff import to_objects
from sew_jax.files import WORKDIR_HINT, write_json, writing_to
from sew_jax.names import split_names
from sew_jax.runtime.sharding import make_mesh
from sew_jax.storage import exists
from sew_jax.study.claims import Claims
from sew_jax.study.plan import (
    ARCHITECTURE,
    Plan,
    Stage,
    evaluation_config,
    finetune_key,
    make_plan,
    training_config,
)
from sew_jax.study.report import write_report
from sew_jax.study.results import Results, Scorer, chosen_rate, mean_wer
from sew_jax.training.train import train

_POLL_S = 1.0
# These change no number of a run; more arms and seeds may join a study, and other settings be compared
_FREE = ("arms", "seeds", "settings", "mesh", "log_every", "checkpoint_every", "evaluate.repeats", "evaluate.mesh")
_SAVING = ("checkpoint_minutes", "keep_every", "stall_minutes")
_FREE_ANYWHERE = ("workers", "threads", "max_bad", "max_skipped", "remat", "resume", *_SAVING)


def study(config: ConfigDict, workdir: Path) -> None:
    """Trains and scores all arms, or what other processes leave of them; the last writes study.json, .csv, .html, .png.

    Raises:
      UserError: config, data or an earlier study in the workdir do not fit, or a run of it failed.
    """
    check_config(config)
    if jax.process_count() > 1:
        raise UserError(
            "study runs in single processes; start the same command on each machine, without the job's flags"
        )
    with _interrupted_by_sigterm():
        _study(config, workdir)


def _study(config: ConfigDict, workdir: Path) -> None:
    plan = make_plan(config, workdir)
    _check_earlier(config, workdir)
    with writing_to(workdir, WORKDIR_HINT):
        claims, results = Claims(workdir / "claims"), Results(workdir / "results")
    _first_screen(config, plan, workdir, results)
    runner = _Runner(config, plan, workdir, results)
    report = Stage(_report_key(plan), "report", None, 0, None, tuple(stage.key for stage in plan.stages))
    again = results.done(report.key)  # whoever asks for what is done gets its report anew
    if not again and not _share(_Shared([*plan.stages, report], claims, results), runner):
        say("stopped; what is done is kept, and the same command goes on from there")
        return
    if again:
        say("nothing to do: all runs are done; the report is written again")
        runner.report()
    say(f"done: study.html, study.png, study.csv and study.json are in {workdir}")


class _Shared:
    """The stages as all processes see them."""

    def __init__(self, stages: Sequence[Stage], claims: Claims, results: Results):
        self.stages, self._claims, self.results = stages, claims, results

    def left(self) -> list[Stage]:
        return [stage for stage in self.stages if not self.results.done(stage.key)]

    def take(self, left: Sequence[Stage]):
        """A claim and its stage; None where nothing can be begun now."""
        for stage in left:
            if all(map(self.results.done, stage.needs)) and (claim := self._claims.take(stage.key)):
                if not self.results.done(stage.key):
                    return claim, stage
                claim.release()  # its owner finished between our two looks
        return None

    def owners(self, left: Sequence[Stage]) -> str:
        held = [f"{stage.key} ({owner})" for stage in left if (owner := self._claims.owner(stage.key))]
        return ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")


def _share(shared: _Shared, runner: "_Runner") -> bool:
    """Runs what no other process does until all is done; False where a signal ended a run before."""
    progress, waiting = _Progress(shared), False
    while left := shared.left():
        if not (taken := shared.take(left)):
            if not waiting:
                say(f"\nnothing to begin now; waiting for {shared.owners(left)}")
            waiting = True
            time.sleep(_POLL_S)
            continue
        waiting = False
        claim, stage = taken
        try:
            say(f"\n[{len(shared.stages) - len(left) + 1}/{len(shared.stages)}] {stage.key}")
            begin = time.monotonic()
            result = runner.run(stage)
            if result is None:
                return False
            seconds = time.monotonic() - begin
            shared.results.write(stage.key, result | {"stage": stage.key, "seconds": seconds})
        finally:
            claim.release()
        say(progress.line())
    return True


class _Progress:
    """How much of the whole is done, by all processes, weighed by FLOP."""

    def __init__(self, shared: _Shared):
        self._shared, self._begin = shared, time.monotonic()
        self._total = sum(stage.flop for stage in shared.stages)
        self._first = self._done()

    def line(self) -> str:
        done, left = self._done(), len(self._shared.left())
        gained, spent = done - self._first, time.monotonic() - self._begin
        eta = format_duration((self._total - done) * spent / gained) if gained else "?"
        count = len(self._shared.stages)
        return f"study: {count - left} of {count} runs, {done / self._total:.0%} of the work | eta {eta}"

    def _done(self) -> float:
        return sum(stage.flop for stage in self._shared.stages if self._shared.results.done(stage.key))


class _Runner:
    """How each kind of stage is run; what it leaves for others, or None where a signal stopped it."""

    def __init__(self, config: ConfigDict, plan: Plan, workdir: Path, results: Results):
        self._config, self._plan, self._workdir, self._results = config, plan, workdir, results
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
        self._tests = split_names(config.split)
        self._score = Scorer(evaluation_config(config), [config.dev_split, *self._tests], mesh)

    def run(self, stage: Stage) -> dict[str, Any] | None:
        kinds: dict[str, Callable[[Stage], dict[str, Any] | None]] = {
            "pretrain": self._pretrain,
            "finetune": self._finetune,
            "time": self._time,
            "report": self.report,
        }
        return kinds[stage.kind](stage)

    def _pretrain(self, stage: Stage) -> dict[str, Any] | None:
        part = training_config(self._config, stage.model, "pretrain", stage.seed)
        part.num_steps = stage.updates
        summary = train(part, self._workdir / stage.key)
        return None if summary.stopped else _cost(stage)

    def _finetune(self, stage: Stage) -> dict[str, Any] | None:
        part = training_config(self._config, stage.model, "finetune", stage.seed)
        source, rate = stage.model.source, stage.rate
        part.num_steps = stage.updates
        part.init_from = str(self._workdir / (f"{source}/{stage.seed}/pretrain" if source else ARCHITECTURE))
        if rate is None:
            rate = self._rate(stage.model)
        if rate is not None:
            part.optim.lr = rate
        folder = self._workdir / finetune_key(stage.model, stage.seed, rate)
        try:
            if train(part, folder).stopped:
                return None
        except Diverged as error:
            if stage.rate is None:
                raise
            say(f"  ! {error}")
            return _cost(stage) | {"rate": rate, "diverged": str(error)}
        result = _cost(stage) | {"rate": part.optim.lr} | self._score(folder, stage.model.table)
        for split in (self._config.dev_split, *self._tests):
            mean = f"{mean_wer(result, split):.2%}, mean over {len(stage.model.table)} setting(s)"
            say(f"  {stage.key}, {split}: WER {mean}")
        return result

    def _time(self, stage: Stage) -> dict[str, Any]:
        part = evaluation_config(self._config)
        folder = self._workdir / finetune_key(stage.model, stage.seed, self._rate(stage.model))
        part.init_from, part.settings = str(folder), ",".join(map(str, self._plan.table))
        return {"rows": to_objects(evaluate(part, self._workdir / "time"))}

    def report(self, stage: Stage | None = None) -> dict[str, Any]:
        del stage
        write_report(self._config, self._plan, self._results, self._workdir)
        return {}

    def _rate(self, model) -> float | None:
        return chosen_rate(self._results, model, self._plan.seeds[0], self._plan.rates, self._config.dev_split)


def _cost(stage: Stage) -> dict[str, Any]:
    return {"updates": stage.updates, "flop": stage.flop, "audio_hours": stage.hours}


def _report_key(plan: Plan) -> str:
    """Another report belongs to other arms, seeds or settings."""
    text = " ".join([*(stage.key for stage in plan.stages), *map(str, plan.settings)])
    return f"report-{zlib.crc32(text.encode()):08x}"


def _first_screen(config: ConfigDict, plan: Plan, workdir: Path, results: Results) -> None:
    say("sew_jax study")
    say(f"  data      {config.pretrain_data or config.data}; transcripts of {config.data}")
    say(f"  splits    chosen on {config.dev_split}, reported on {config.split}")
    say(f"  settings  {len(plan.table)} in the table, compared at {' '.join(map(str, plan.settings))}")
    rates = (
        f"{', '.join(f'{r:g}' for r in plan.rates)}, each model's chosen on dev" if plan.rates else "the recipe's own"
    )
    say(f"  rates     of fine-tuning: {rates}")
    say(f"  seeds     {', '.join(map(str, plan.seeds))}; all arms get equal {config.equal}")
    say("\n" + format_cost(plan))
    done = sum(results.done(stage.key) for stage in plan.stages)
    say(f"\n  outputs   {workdir}" + (f"; {done} of {len(plan.stages)} runs are done" if done else ""))


def format_cost(plan: Plan) -> str:
    """The runs of each model and what they cost, for the screen."""
    lines = [("model", "runs", "updates each", "FLOP", "audio h")]
    groups: dict[tuple[str, str], list[Stage]] = {}
    for stage in plan.stages:
        if stage.updates:
            groups.setdefault((stage.model.name, stage.kind), []).append(stage)
    for (name, kind), stages in groups.items():
        lines.append((f"{name} {kind}", *_sums(stages, f"{stages[0].updates:,}")))
    trained = [stage for stage in plan.stages if stage.updates]
    lines.append(("all", *_sums(trained, f"{sum(stage.updates for stage in trained):,} in all")))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  " + "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def _sums(stages: Sequence[Stage], updates: str) -> tuple[str, str, str, str]:
    flop, hours = sum(s.flop for s in stages), sum(s.hours for s in stages)
    return str(len(stages)), updates, f"{flop:.2e}", f"{hours:,.1f}"


def _check_earlier(config: ConfigDict, workdir: Path) -> None:
    """Writes the config into the workdir, or checks it against the one there."""
    path, new = workdir / "study_config.json", _flat(json.loads(json.dumps(config.to_dict())))
    if not exists(path):
        with writing_to(workdir, WORKDIR_HINT):
            write_json(path, new)
    old = json.loads(path.read_text(encoding="utf-8"))
    # a study from before a key existed was as the key's default says
    old = {key: value for key, value in recorded_defaults("study").items() if key in new} | old
    for key in sorted(old.keys() | new.keys()):
        free = any(key == name or key.startswith(f"{name}.") for name in _FREE) or key.split(".")[-1] in _FREE_ANYWHERE
        if not free and old.get(key) != new.get(key):
            raise UserError(
                f"workdir: {workdir} holds a study with config.{key}={old.get(key)!r}, this one has {new.get(key)!r}; "
                "use the same value to go on with it, or another --workdir"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


@contextlib.contextmanager
def _interrupted_by_sigterm():
    """SIGTERM outside a training loop, which saves and stops by itself, unwinds as Ctrl-C does: claims are let go."""

    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    usual = None
    with contextlib.suppress(ValueError):  # signals belong to the main thread
        usual = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if usual is not None:
            signal.signal(signal.SIGTERM, usual)
