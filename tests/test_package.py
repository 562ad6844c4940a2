"""What is installed: a wheel built as pip builds it, looked into, and run where there is no clone."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import sew_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SOURCES = ("sew_jax", "configs", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, since setuptools leaves a folder beside the sources."""
    root = tmp_path_factory.mktemp("package")
    with tarfile.open(root / "sources.tar", "w") as tar:
        for name in SOURCES:
            tar.add(ROOT / name, name, filter=lambda entry: None if "__pycache__" in entry.name else entry)
    with tarfile.open(root / "sources.tar") as tar:
        tar.extractall(root / "clone", filter="data")
    pip("wheel", str(root / "clone"), "--no-build-isolation", "--wheel-dir", str(root))
    (path,) = root.glob("*.whl")
    return path


def test_the_wheel_holds_all_code_configs_and_templates_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(f"sew_jax-{sew_jax.__version__}.dist-info/METADATA").decode()
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "sew_jax").rglob("*") if path.suffix in (".py", ".html")}
    models = {str(path.relative_to(ROOT)) for path in (ROOT / "sew_jax/shipped").rglob("*") if path.is_file()}
    assert len(models) > 5 and names == code | models | {
        f"sew_jax/_configs/{path.name}" for path in (ROOT / "configs").glob("*.py")
    }
    assert any(name.endswith(".html") for name in names)
    for extra in ("tpu", "cuda", "gcs", "s3", "serve", "torch", "test"):
        assert f"Provides-Extra: {extra}\n" in metadata
    required = set(re.findall(r"Requires-Dist: (\S+)\n", metadata))
    stated = re.findall(r"^([^#\s]\S*)", (ROOT / "requirements.txt").read_text("utf-8"), re.M)
    assert required == set(stated)


def test_the_installed_command_runs_in_an_empty_folder(wheel, tmp_path):
    pip("install", str(wheel), "--target", str(tmp_path / "site"), "--no-compile")
    (tmp_path / "empty").mkdir()

    def run(*words):
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu", "PYTHONUTF8": "1"}
        command = [sys.executable, *words]
        cwd = tmp_path / "empty"
        return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)

    command = str(tmp_path / "site/bin/sew-jax")
    assert run("-c", "import sew_jax; print(sew_jax.__file__)").stdout.startswith(str(tmp_path / "site"))
    told = run(command, "--help")
    assert told.returncode == 0 and "sew-jax --config=demo.py" in told.stdout, told.stderr
    dry = run(command, "--config=plan.py:base,fixed", "--config.devices=8", "--config.memory_gib=80")
    assert dry.returncode == 0 and "--config.mesh.fsdp=" in dry.stdout, dry.stdout + dry.stderr
    for name in ("demo.py", "configs/demo.py", "pretrain.py:base,fixed"):
        stopped = run("-m", "sew_jax.main", f"--config={name}", "--config.mode=none")
        assert stopped.returncode == 2 and "mode: 'none' is unknown" in stopped.stderr, stopped.stderr
    clip = ROOT / "tests/digits/906-1-0096.flac"
    heard = run("-c", f"import sew_jax; print(sew_jax.load('digits').transcribe({str(clip)!r}, setting='s2q1k1').text)")
    assert heard.stdout.splitlines()[-1:] == ["ZERO TWO SEVEN FOUR"], heard.stdout + heard.stderr
    without = run("-c", "import configs")
    assert not without.stdout and without.returncode == 1
    assert not list((tmp_path / "empty").iterdir())


def test_every_requirement_has_one_tested_version():
    """launch/constraints.txt pins what requirements.txt and the tests need, at or above the lower bounds."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "launch/constraints.txt").read_text("utf-8"), re.M))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    bounds = re.findall(r"^([\w.-]+)(?:\[\w+\])?>=(\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.M)
    assert len(bounds) > 10
    for name, bound in bounds:
        pinned = pins[name.lower().replace("_", "-")]
        assert [int(n) for n in pinned.split(".")] >= [int(n) for n in bound.split(".")], name
    for requirement in PROJECT["project"]["optional-dependencies"]["test"]:
        assert re.match(r"[\w-]+", requirement)[0] in pins
