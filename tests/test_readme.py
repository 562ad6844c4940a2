"""What the README, the pages of docs/ and the configs tell their readers to type works."""

import ast
import dataclasses
import inspect
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
import typing
from pathlib import Path

import pytest

from sew_jax.config_files import load_config
from tests.commands import Commands
from tests.runs import begin_finetuned, make_corpus

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
README = PAGES["README.md"] = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """The code blocks of a language, each with its page."""
    return [
        (name, code) for name in sorted(PAGES) for code in re.findall(rf"```{language}\n(.*?)```", PAGES[name], re.S)
    ]


_DOCSTRINGS = [ast.get_docstring(ast.parse(path.read_text("utf-8"))) for path in (ROOT / "configs").glob("*.py")]
_SHELL = "\n".join(code for _, code in blocks("bash")).replace("\\\n", " ")
# without comments: one command each, also of those that && joins
COMMANDS = [part.strip() for line in _SHELL.splitlines() for part in line.split("  #")[0].split(" && ")]
COMMANDS = sorted({command for command in COMMANDS if command and not command.startswith("#")})
_LINES = COMMANDS + [line for text in _DOCSTRINGS for line in text.replace("\\\n", " ").splitlines()]
# without a shell's pipes and redirections
RUNS = sorted({found[0].strip() for line in _LINES if (found := re.search(r"python -m sew_jax\.main[^>|#]*", line))})
TEXT = [code for name, code in blocks("python") if "sew_jax.load(" in code]
TRAINING = [code for name, code in blocks("python") if "load_config(" in code]


def run(command, *more, **environment):
    words = [sys.executable, *shlex.split(command, comments=True)[1:], *more]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_it_names_every_config():
    assert {path.name for path in (ROOT / "configs").glob("*.py")} <= set(re.findall(r"configs/(\w+\.py)", README))


def test_it_is_short():
    assert len(README.splitlines()) <= 150


@pytest.fixture(scope="module")
def commands():
    with Commands() as opened:
        yield opened


@pytest.mark.parametrize("command", RUNS)
def test_every_flag_exists(command, commands, tmp_path):
    """All flags are read before the mode is looked at, and an unknown mode is where it stops."""
    python, dash_m, module, *flags = shlex.split(command)
    assert (python, dash_m, module) == ("python", "-m", "sew_jax.main")
    done = commands.run(*flags, "--config.mode=none", folder=tmp_path)
    assert done.returncode == 2 and "mode: 'none' is unknown" in done.stderr, done.stderr


def test_every_other_command_names_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"]
    markers = [marker.split(":")[0] for marker in project["tool"]["pytest"]["ini_options"]["markers"]]
    for command in COMMANDS:
        words = shlex.split(command)
        match words:
            case ["python", "-m", "sew_jax.main", *_]:
                assert command in RUNS
            case ["pip", "install", *arguments]:
                assert set(re.findall(r"\w+", "".join(re.findall(r"\.\[(.*?)\]", command)))) <= set(extras)
                assert all(
                    (ROOT / file).is_file() for flag, file in itertools.pairwise(arguments) if flag in ("-c", "-r")
                )
            case ["python", "-m", "pytest", *arguments]:
                assert all((ROOT / word).exists() for word in arguments if word.startswith("tests"))
                assert all(name in markers for flag, name in itertools.pairwise(arguments) if flag == "-m")
            case ["python", "-m", script, *arguments] if script.startswith("tests."):
                source = (ROOT / f"{script.replace('.', '/')}.py").read_text("utf-8")
                assert all(f'"{flag.split("=")[0]}"' in source for flag in arguments if flag.startswith("--"))
            case ["ruff" | "mypy" as tool, *_]:
                assert tool in extras["test"]
            case _:
                assert words[0] == "tar", f"{command}: no test runs or reads it"


def test_its_first_command(tmp_path):
    """The demo, as a newcomer runs it, made small."""
    first = next(line for line in README.splitlines() if "sew_jax.main" in line)
    assert first == "pip install -e . && python -m sew_jax.main --config=configs/demo.py"
    small = [
        f"--config.data={make_corpus(tmp_path / 'corpus')}",
        "--config.compression.squeeze=1,2",
        "--config.compression.query_pool=1",
        "--config.pretrain.num_steps=3",
        "--config.finetune.num_steps=3",
        "--config.pretrain.model.layers=1",
    ]
    done = run(first.split(" && ")[1], *small, f"--workdir={tmp_path / 'demo'}", SEW_JAX_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0 and not done.stderr, done.stderr
    last = done.stdout.splitlines()[-3:]
    assert "contrastive accuracy" in last[0] and "from random weights" in last[1] and "tradeoff.html" in last[2]
    left = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"pretrain", "finetune", "scratch", "transcripts", "tradeoff.json", "tradeoff.csv", "tradeoff.png"} <= left
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert set(summary) == {"wer", "wer_from_random_weights"}


def test_its_second_command_is_what_ci_runs():
    """`.ci/run` takes the first line that calls pytest; what it runs after it, that line has installed."""
    command = next(line for line in README.splitlines() if "python -m pytest" in line)
    assert command in _SHELL.splitlines() and command.startswith(
        "pip install -c launch/constraints.txt -e '.[test]' && "
    )
    ci = (ROOT / ".ci/run").read_text("utf-8")
    assert "grep -m 1 'python -m pytest' README.md" in ci
    assert all(tool in ci for tool in ("'ruff check .'", "'ruff format --check .'", "mypy"))


def test_text_from_python(tmp_path, monkeypatch, capsys):
    """The blocks that open a model, with one of random weights in the place of the demo's."""
    audio = next(begin_finetuned(tmp_path / "runs/demo").rglob("*.flac"))
    for name in ("a.flac", "b.flac"):
        (tmp_path / name).write_bytes(audio.read_bytes())
    shutil.copytree(ROOT / "tests/digits", tmp_path / "tests/digits")
    monkeypatch.chdir(tmp_path)
    assert any(name == "README.md" and "sew_jax.load(" in code for name, code in blocks("python"))
    for code in TEXT:
        exec(compile(code, "page", "exec"), {"__name__": "page"})
        assert capsys.readouterr().out.strip()


def test_training_from_python(tmp_path, monkeypatch, capsys):
    """The block that trains and evaluates: what it asks of the configs, the functions and their points exists."""
    from sew_jax.evaluation import evaluate
    from sew_jax.training import train

    called = []
    (point,) = typing.get_args(typing.get_type_hints(evaluate.evaluate)["return"])

    def stand_in(function):
        def note(*arguments):
            called.append(inspect.signature(function).bind(*arguments).arguments)
            return [types.SimpleNamespace(**{field.name: 1 for field in dataclasses.fields(point)})]

        return note

    monkeypatch.setattr(train, "train", stand_in(train.train))
    monkeypatch.setattr(evaluate, "evaluate", stand_in(evaluate.evaluate))
    (code,) = TRAINING
    exec(compile(code, "page", "exec"), {"__name__": "page"})
    assert [call["config"].mode for call in called] == ["pretrain", "finetune", "evaluate"]
    for before, after in itertools.pairwise(called):
        assert Path(after["config"].init_from) == before["workdir"]
    assert capsys.readouterr().out.strip() == "1 1 1"


def test_a_config_of_ones_own(tmp_path):
    (code,) = [code for _, code in blocks("python") if "from configs import" in code]
    (tmp_path / "own.py").write_text(code)
    config = load_config(str(tmp_path / "own.py"))
    assert config.mode == "finetune" and config.vocabulary == "auto"


def anchors(page: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", PAGES[name], flags=re.S))
    for link in links:
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.is_file() and path.resolve().is_relative_to(ROOT), f"{name}: {link}"
        assert not anchor or anchor in anchors(path.read_text("utf-8")), f"{name}: {link}"


def test_every_page_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/\w[\w.-]*\.md)", README))
    assert linked == set(PAGES) - {"README.md"}


@pytest.mark.parametrize("name", sorted(PAGES))
def test_files_that_a_page_names_exist(name):
    named = re.findall(r"`((?:sew_jax|configs|tests|launch|docs)/[\w./-]+?\.\w+)", PAGES[name])
    missing = [path for path in named if not (ROOT / path).is_file()]
    assert not missing


def test_modules_of_the_changelog_exist():
    rows = re.findall(r"^\| .*? \| (.*) \|$", PAGES["docs/CHANGELOG.md"].partition("|---|---|")[2], re.M)
    modules = [module for row in rows for module in re.findall(r"`([\w.]+)`", row)]
    assert len(modules) > 60
    missing = [module for module in modules if not (ROOT / f"sew_jax/{module.replace('.', '/')}.py").is_file()]
    assert not missing


def test_the_picture_is_one_that_an_evaluation_drew():
    (picture,) = re.findall(r"^!\[.+\]\((.+)\)$", README, re.M)
    data = (ROOT / picture).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and b"Matplotlib" in data[:200]
