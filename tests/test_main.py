"""The command line: what a user types, what the shell gets back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from sew_jax.config_files import load_config
from tests.commands import Commands
from tests.runs import make_corpus

ROOT = Path(__file__).parents[1]


def run(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "sew_jax.main", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Corpora with one fault each."""
    root = tmp_path_factory.mktemp("corpora")
    (root / "empty").mkdir()
    make_corpus(root / "good")
    for path in make_corpus(root / "noise").rglob("*.flac"):
        path.write_bytes(b"this is no audio")
    text = make_corpus(root / "symbols") / "train/1/1/1-1.trans.txt"
    text.write_text(text.read_text().replace("TWO", "ZWÖLF"), encoding="utf-8")
    for path in make_corpus(root / "short").rglob("*.flac"):
        wave, rate = soundfile.read(path)
        soundfile.write(path, wave[:2000], rate)
    return root


PRETRAIN = "--config=configs/pretrain.py"
BAD = {
    "no config": (["--workdir=x"], "no config"),
    "missing config": (["--config=configs/nothing.py"], "configs/nothing.py"),
    "mistyped key": ([PRETRAIN, "--config.optim.lrr=1"], "--config.optim.lrr is unknown; did you mean lr?"),
    "unknown key": ([PRETRAIN, "--config.zzz=1"], "--config.zzz is unknown"),
    "unknown flag": ([PRETRAIN, "--confg.seed=1"], "--confg.seed is unknown"),
    "not a number": ([PRETRAIN, "--config.num_steps=many"], "--config.num_steps=many"),
    "stray word": ([PRETRAIN, "hello"], "'hello' is not understood"),
    "unknown size": (["--config=configs/pretrain.py:huge"], "'huge' is unknown; choose one of"),
    "unknown objective": (["--config=configs/pretrain.py:base,data2vec"], "'data2vec' is unknown; choose one of"),
    "two sizes": (["--config=configs/pretrain.py:base,large"], "base and large exclude each other; name one"),
    "two tables": (["--config=configs/plan.py:base,fixed,stochastic"], "fixed and stochastic exclude each other"),
    "two recipes": (["--config=configs/study.py:base,1h,10h"], "1h and 10h exclude each other; name one"),
    "unknown recipe": (["--config=configs/finetune.py:3h"], "choose one of 10m, 1h, 10h, 100h"),
    "unknown setting": ([PRETRAIN, "--config.compression.names=s1q1k1,fast"], "setting 'fast' is unknown; write"),
    "factor of 0": ([PRETRAIN, "--config.compression.squeeze=0,1"], "0 is not a factor"),
    "no updates": ([PRETRAIN, "--config.num_steps=0"], "num_steps: 0 must be at least 1"),
    "impossible shares": ([PRETRAIN, "--config.input.corpus_exponent=-1"], "input.corpus_exponent: -1.0 must be"),
    "impossible pace": ([PRETRAIN, "--config.data=ROOT/good", "--config.input.speed=0.5"], "input.speed: 0.5 must be"),
    "no text": (["--config=configs/lm.py", "--config.data="], "text: there is none to count"),
    "missing data": ([PRETRAIN, "--config.data=ROOT/nowhere"], "nowhere does not exist"),
    "empty folder": ([PRETRAIN, "--config.data=ROOT/empty", "--config.split="], "empty"),
    "no audio": ([PRETRAIN, "--config.data=ROOT/noise"], "1-1-0000"),
    "too short": ([PRETRAIN, "--config.data=ROOT/short"], "shorter than"),
    "nothing to fine-tune": (["--config=configs/finetune.py", "--config.data=ROOT/good"], "init_from is empty"),
    "no such run": (["--config=configs/evaluate.py", "--config.init_from=ROOT/nowhere"], "init_from: "),
}


@pytest.fixture(scope="module")
def commands():
    with Commands() as opened:
        yield opened


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_status_2(case, commands, corpora, tmp_path):
    arguments, message = BAD[case]
    arguments = [a.replace("ROOT", str(corpora)) for a in arguments]
    workdir = [] if case == "no config" else [f"--workdir={tmp_path / 'run'}"]
    done = commands.run(*arguments, *workdir, folder=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_storage_that_stays_away_is_one_line_and_status_75(tmp_path):
    corpus = make_corpus(tmp_path / "mount/corpus")
    arguments = [PRETRAIN, f"--config.data={corpus}", "--config.num_steps=1", f"--workdir={tmp_path / 'run'}"]
    arguments += ["--config.compression.squeeze=1", "--config.compression.query_pool=1", "--config.model.layers=1"]
    arguments += [f"--config.model.{key}=32" for key in ("width", "ffn_width")]
    assert run(*arguments).returncode == 0
    corpus.rename(tmp_path / "elsewhere")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "SEW_JAX_PATIENCE_S": "0.1"}
    command = [sys.executable, "-m", "sew_jax.main", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 75 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: storage does not answer (") and str(corpus) in done.stderr


def test_help_and_nothing():
    helped, bare = run("--help"), run()
    assert (helped.returncode, bare.returncode) == (0, 2) and helped.stdout == bare.stdout
    assert all(f"--config=configs/{path.name}" in bare.stdout for path in (ROOT / "configs").glob("*.py"))
    assert "sew-jax --config=" in bare.stdout and "sew_jax.load(" in bare.stdout


def test_every_config_has_its_mode_whose_import_touches_no_device():
    """A job's processes join before the first look at devices, and modes are imported before that."""
    modes = {load_config(str(path)).mode for path in (ROOT / "configs").glob("*.py")}
    script = f"from sew_jax.main import _mode\nfor mode in {sorted(modes)}:\n    assert callable(_mode(mode)), mode\n"
    script += "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and len(modes) == len(list((ROOT / "configs").glob("*.py"))), done.stderr


def test_from_audio_to_a_table(corpora, tmp_path):
    """pretrain, finetune and evaluate, with audio read by a worker process; then mistakes that need a checkpoint."""
    common = [f"--config.data={corpora / 'good'}", "--config.log_every=1"]
    table = ["--config.compression.squeeze=1", "--config.compression.query_pool=1", "--config.num_steps=2"]
    batch = ["--config.input.batch_seconds=4"]
    size = [f"--config.model.{key}=32" for key in ("width", "ffn_width")] + ["--config.model.layers=1"]
    pretrained, finetuned = tmp_path / "pretrain", tmp_path / "finetune"

    done = run(PRETRAIN, *common, *table, *batch, *size, "--config.input.workers=1", f"--workdir={pretrained}")
    assert done.returncode == 0 and "step 2/2" in done.stdout, done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    start = f"--config.init_from={pretrained}"
    done = run("--config=configs/finetune.py", start, *common, *table, *batch, f"--workdir={finetuned}")
    assert done.returncode == 0 and "step 2/2" in done.stdout, done.stderr
    done = run(
        "--config=configs/evaluate.py", f"--config.init_from={finetuned}", common[0], f"--workdir={tmp_path / 'table'}"
    )
    assert done.returncode == 0 and "WER" in done.stdout, done.stderr
    assert (tmp_path / "table" / "tradeoff.png").is_file()
    command = f"python -m sew_jax.main --config=configs/evaluate.py --config.init_from={finetuned}"
    assert f'"command":"{command} ' in (tmp_path / "table" / "tradeoff.html").read_text()

    other = run(PRETRAIN, start, *common, *table, "--config.model.ffn_width=48", f"--workdir={tmp_path / 'other'}")
    assert other.returncode == 2 and "has another shape" in other.stderr and other.stderr.count("\n") == 1
    symbols = f"--config.data={corpora / 'symbols'}"
    other = run("--config=configs/finetune.py", start, symbols, f"--workdir={tmp_path / 'letters'}")
    assert other.returncode == 2 and "'Ö'" in other.stderr and other.stderr.count("\n") == 1, other.stderr


def test_help_into_a_closed_pipe_is_no_traceback():
    command = [sys.executable, "-m", "sew_jax.main", "--help"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as head does, long before anything is printed
    assert "Traceback" not in process.stderr.read()
    process.wait()
