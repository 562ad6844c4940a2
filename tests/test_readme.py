"""What the README tells a newcomer to type works."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import make_corpus

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
_BLOCKS = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.S))
_DOCSTRINGS = [ast.get_docstring(ast.parse(path.read_text("utf-8"))) for path in (ROOT / "configs").glob("*.py")]
LINES = [line.strip() for text in (_BLOCKS, *_DOCSTRINGS) for line in text.replace("\\\n", " ").splitlines()]
# without a shell's pipes and redirections
RUNS = sorted(
    {re.search(r"python -m sew_jax\.main[^>|]*", line)[0] for line in LINES if "python -m sew_jax.main" in line}
)


def run(command, *more, **environment):
    words = [sys.executable, *shlex.split(command, comments=True)[1:], *more]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_it_names_every_config():
    assert {path.name for path in (ROOT / "configs").glob("*.py")} <= set(re.findall(r"configs/(\w+\.py)", README))


@pytest.mark.parametrize("command", RUNS)
def test_every_flag_exists(command):
    """All flags are read before the mode is looked at, and an unknown mode is where it stops."""
    done = run(command, "--config.mode=none")
    assert done.returncode == 2 and "mode 'none' is unknown" in done.stderr, done.stderr


def test_its_first_command(tmp_path):
    """The demo, as a newcomer runs it, made small."""
    demo = next(command for command in RUNS if "configs/demo.py" in command)
    small = [
        f"--config.data={make_corpus(tmp_path / 'corpus')}",
        "--config.compression.squeeze=1,2",
        "--config.compression.query_pool=1",
        "--config.pretrain.num_steps=3",
        "--config.finetune.num_steps=3",
        "--config.pretrain.model.layers=1",
    ]
    done = run(demo, *small, f"--workdir={tmp_path / 'demo'}", SEW_JAX_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0 and not done.stderr, done.stderr
    last = done.stdout.splitlines()[-3:]
    assert "contrastive accuracy" in last[0] and "from random weights" in last[1] and "tradeoff.html" in last[2]
    left = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"pretrain", "finetune", "scratch", "transcripts", "tradeoff.json", "tradeoff.csv", "tradeoff.png"} <= left
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert set(summary) == {"wer", "wer_from_random_weights"}


def test_its_second_command_is_what_ci_runs():
    """`.ci/run` takes the first line that calls pytest."""
    command = next(line for line in README.splitlines() if "python -m pytest" in line)
    assert command in LINES and command.startswith("pip install -r requirements.txt")
