"""The entry point: `python -m sew_jax.main --config=configs/NAME.py[:ARGS] [--workdir=DIR] [--config.KEY=VALUE ...]`.

Where the package is installed, `sew-jax --config=NAME.py ...` is the same, from any folder.

Exit status: 0 success, 2 bad input (one line that names it), 75 what passes by itself, such as storage that does not
answer (one line; the same command goes on), 1 a failure of ours.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from sew_jax.buckets import as_path, check_bucket, is_remote
from sew_jax.checks.check import check_config
from sew_jax.config_files import find_config, importable
from sew_jax.console import typed
from sew_jax.errors import Unavailable, UserError
from sew_jax.huge_pages import begin_with_huge_pages
from sew_jax.names import in_language
from sew_jax.storage import errors_in_words

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:ARGS], and its keys as --config.KEY=VALUE")
_WORKDIR = flags.DEFINE_string("workdir", None, "where outputs go; by default runs/NAME")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where JAX can't find it itself"
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "processes of the job")
_PROCESS = flags.DEFINE_integer("process_id", None, "number of this one, from 0")
_WITHOUT_DEVICES = ("lm", "prepare", "plan", "benchmark")  # benchmark starts processes that have them
_LOCAL = ("study", "benchmark")  # whose claims, and profilers, need a disk
# What those keep that take long; the others begin anew
_AGAIN = dict.fromkeys(("pretrain", "finetune", "demo"), "the same command goes on from the last checkpoint")
_AGAIN |= dict.fromkeys(("prepare", "study"), "what is done is kept, and the same command goes on from there")
_HELP = """\
usage: python -m sew_jax.main --config=configs/NAME.py[:ARGS] [--workdir=DIR] [--config.KEY=VALUE ...]

  --config=configs/demo.py       pre-train, fine-tune and evaluate a small model on synthetic speech, in minutes
  --config=configs/study.py      the paper's experiment: one stochastic model against dedicated ones (:base, ...)
  --config=configs/pretrain.py   pre-train (:base, :large, :sew_tiny, ... for the published sizes)
  --config=configs/finetune.py   fine-tune on transcripts (:10m, :1h, :10h, :100h; :10h,stochastic without them)
  --config=configs/evaluate.py   word error rate and time at every setting
  --config=configs/search.py     per-layer settings that beat uniform ones at equal cost
  --config=configs/transcribe.py text with times of audio files, at a setting or a budget
  --config=configs/serve.py      the same for many at once: a server that OpenAI's clients can ask
  --config=configs/lm.py         an n-gram of words from transcripts and text, for beam search
  --config=configs/prepare.py    write any speech as the dataset that training reads fastest
  --config=configs/plan.py       what a model needs of memory, and what a budget of computing buys of each size
  --config=configs/benchmark.py  how fast this machine computes, reads audio and starts a run
  --config=configs/export.py     a model as StableHLO programs, or as a folder for transformers or sew_jax

Each config file begins with its command, what it needs and what it reached; all of its keys can be given as flags.
Where sew_jax is installed, `sew-jax --config=demo.py` is the same from any folder.
From Python: sew_jax.load("runs/finetune").transcribe("talk.flac").text"""


def main() -> int:
    """Runs the mode of the config that the command line names; returns the exit status."""
    argv, mode = sys.argv, ""
    try:
        if len(argv) == 1 or any(arg in ("-h", "--help", "-help") for arg in argv[1:]):
            print(_HELP, flush=True)
            return 0 if len(argv) > 1 else 2
        config, workdir = _parse(argv)
        mode = config.mode
        check_config(config)
        config = in_language(config)
        with errors_in_words(), typed(argv[1:]):
            check_bucket(workdir, "workdir")
            _run(config, workdir)
    except (UserError, Unavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # what reads the output has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted" + (f"; {_AGAIN[mode]}" if mode in _AGAIN else ""), file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str]) -> tuple[ConfigDict, Path]:
    """The config and the workdir that the command line names; flags errors become one line."""
    argv, path = _with_path(argv)
    try:
        with importable(path):
            rest = flags.FLAGS(argv)[1:]
        config = _CONFIG.value
        mode = config and config.mode  # a file that could not be loaded says so when it is first looked into
    except OSError as error:
        raise UserError(f"config: {_one_line(error, argv)}") from error
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(_one_line(error, argv)) from error
    if rest:
        raise UserError(f"{rest[0]!r} is not understood; overrides are written --config.KEY=VALUE")
    if mode is None:
        raise UserError("no config; add for example --config=configs/demo.py")
    workdir = _WORKDIR.value or f"runs/{Path(path.partition(':')[0]).stem}"
    if is_remote(workdir) and mode in _LOCAL:
        raise UserError(f"workdir: {mode} writes to a local folder alone; name one in place of {workdir}")
    return config, as_path(workdir)


def _with_path(argv: list[str]) -> tuple[list[str], str]:
    """The command line with the path of the config file in place of its name, and that path; empty: it names none."""
    for i, word in enumerate(argv):
        flag, equals, name = word.partition("=")
        if flag in ("--config", "-config") and (equals or i + 1 < len(argv)):
            path = find_config(name if equals else argv[i + 1])
            return [*argv[:i], f"--config={path}", *argv[i + (1 if equals else 2) :]], path
    return argv, ""


def _one_line(error: Exception, argv: list[str]) -> str:
    """What ml_collections and absl say about a flag, shortened to the flag and the mend."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    if isinstance(error, (AttributeError, KeyError)):  # its text starts with the missing attribute alone
        key = re.search(r"\w+", text).group()
        flag = next((arg.split("=")[0] for arg in argv if f".{key}" in arg), f"config key {key}")
        hint = re.search(r'Did you mean "(\w+)"', text)
        return f"{flag} is unknown; " + (f"did you mean {hint[1]}?" if hint else "the config file names all keys")
    return re.sub(r"^Unknown command line flag '([^']*)'", r"--\1 is unknown", text)


def _run(config: ConfigDict, workdir: Path) -> None:
    run = _mode(config.mode)
    if config.mode in _WITHOUT_DEVICES:
        run(config, workdir)
    else:
        _on_devices(lambda: run(config, workdir))


def _mode(name: str) -> Callable[[ConfigDict, Any], object]:
    """The function of a mode, imported here: a mistyped flag must not wait for JAX, which some have no use for."""
    match name:
        case "pretrain" | "finetune":
            from sew_jax.training.train import train

            return train
        case "evaluate":
            from sew_jax.evaluation.evaluate import evaluate

            return evaluate
        case "search":
            from sew_jax.evaluation.search import search

            return search
        case "lm":
            from sew_jax.decoding.build_lm import build_lm

            return build_lm
        case "transcribe":
            from sew_jax.transcription.transcribe import transcribe

            return transcribe
        case "serve":
            from sew_jax.serving.serve import serve

            return serve
        case "export":
            from sew_jax.export.export import export

            return export
        case "prepare":
            from sew_jax.data.prepare import prepare

            return prepare
        case "plan":
            from sew_jax.training.compute_plan import plan

            return plan
        case "benchmark":
            from sew_jax.benchmarks.benchmark import benchmark

            return benchmark
        case "demo":
            from sew_jax.demo import demo

            return demo
        case "study":
            from sew_jax.study.study import study

            return study
    raise UserError(f"mode {name!r} is unknown; each config file sets its own, which stays as it is")


def _on_devices(run: Callable[[], object]) -> None:
    """With the processes of a job joined, and programs of earlier runs at hand."""
    import jax

    from sew_jax.checkpoints.quiet import quiet_orbax
    from sew_jax.console import speak_as
    from sew_jax.files import cache_folder
    from sew_jax.models.platforms import compiled_for_own_devices
    from sew_jax.runtime import distributed

    # programs compiled once are kept for later runs of the same command, where JAX's own variable names no other place
    if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    speak_as(jax.process_index())
    quiet_orbax()
    try:
        with errors_in_words(), compiled_for_own_devices():
            run()
    except BaseException as error:
        distributed.abandon(error)
        raise


def command() -> int:
    """`main` of a process of its own."""
    begin_with_huge_pages()
    return main()


if __name__ == "__main__":
    sys.exit(command())
