"""From a released checkpoint to a table, and out again, from the command line."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from safetensors.numpy import load_file

from sew_jax import main as command
from sew_jax.checkpoints import pretrained
from sew_jax.checkpoints.hf_config import Architecture
from sew_jax.checkpoints.hf_folder import write_folder
from sew_jax.checkpoints.hf_weights import parameter_shapes
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.models.config import PretrainHeadConfig
from tests.models.build import draw, small
from tests.runs import make_corpus

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'

RELEASED = Path(__file__).parents[1] / "released"
SMALL = ["--config.input.batch_seconds=4", "--config.input.buckets=1", "--config.log_every=1", "--config.dtype=float32"]
TABLE = ["--config.compression.squeeze=1,2", "--config.compression.query_pool=1"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def run_fresh(config, *options):
    """A command line in a process of its own."""
    line = [sys.executable, "-m", "sew_jax.main", f"--config=configs/{config}", *options]
    return subprocess.run(line, capture_output=True, text=True, timeout=600)


@pytest.fixture
def run(monkeypatch, capfd):
    """A command line in this process, which has JAX loaded, on one device."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    monkeypatch.setattr(command, "_on_devices", lambda run: run())  # joins processes before JAX looks at devices

    def run(config, *options):
        monkeypatch.setattr(sys, "argv", ["main", f"--config=configs/{config}", *options])
        with forgetting_flags():
            status = command.main()
        return subprocess.CompletedProcess(options, status, *capfd.readouterr())

    return run


@contextlib.contextmanager
def forgetting_flags():
    try:
        yield
    finally:
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


def succeed(run, *arguments):
    done = run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "fresh"), [("wav2vec2", False), ("sew_ctc", True)])
def test_a_released_checkpoint_becomes_stochastic(name, fresh, corpus, tmp_path, run):
    run = run_fresh if fresh else run
    start = f"--config.init_from=hf:{RELEASED / name}"
    data = f"--config.data={corpus}"
    tuned = tmp_path / "tuned"
    shown = succeed(run, "finetune.py", start, data, *SMALL, *TABLE, "--config.num_steps=2", f"--workdir={tuned}")
    fresh = {"wav2vec2": "new: upsample_2/difference, symbols", "sew_ctc": "new: upsample_2/linear"}[name]
    assert fresh in shown and "step 2/2" in shown
    table = tmp_path / "table"
    succeed(run, "evaluate.py", f"--config.init_from={tuned}", data, "--config.repeats=1", f"--workdir={table}")
    rows = json.loads((table / "tradeoff.json").read_text())
    assert [row["setting"] for row in rows] == ["s1q1k1", "s2q1k1"]


def test_pretraining_goes_on_from_a_released_checkpoint(corpus, tmp_path, run):
    start = f"--config.init_from=hf:{RELEASED / 'hubert'}"
    flags = [start, f"--config.data={corpus}", *SMALL, "--config.compression.names=s2q1k1", f"--workdir={tmp_path}"]
    shown = succeed(run, "pretrain.py:inherit", *flags, "--config.num_steps=1", "--config.input.min_seconds=0.5")
    assert "step 1/1" in shown


def xlsr_like(path, layers):
    """A folder of XLS-R's form, as narrow as the others."""
    backbone = small("layer", layers=layers, upsample_factors=())
    head = PretrainHeadConfig(codes=8, code_width=16, final_width=16)
    write_folder(path, "wav2vec2", Architecture(backbone, head, 1), draw(parameter_shapes(backbone, head)), None)
    return f"hf:{path}"


def test_a_codebook_stays_as_cool_as_its_schedule_left_it(tmp_path, monkeypatch):
    assert pretrained._LARGE == 24
    monkeypatch.setattr(pretrained, "_LARGE", 2)
    assert open_pretrained(xlsr_like(tmp_path / "large", 2)).temperature == 0.1
    assert open_pretrained(xlsr_like(tmp_path / "base", 1)).temperature == 0.5
    assert open_pretrained(f"hf:{RELEASED / 'wav2vec2'}").temperature is None


def test_a_released_checkpoint_goes_on_in_another_language(corpus, tmp_path, run):
    """All its parts by name, its codebook not heated up again; then its letters."""
    other, first, tuned = shutil.copytree(corpus, tmp_path / "other"), tmp_path / "first", tmp_path / "tuned"
    flags = [*SMALL, "--config.compression.names=s1q1k1", "--config.num_steps=1", "--config.eval.split="]
    flags.append("--config.input.min_seconds=0.5")
    start = f"--config.init_from={xlsr_like(tmp_path / 'xlsr', 1)}"
    more = [f"--config.data={corpus},{other}", "--config.model.feature_grad_scale=0", f"--workdir={first}"]
    shown = succeed(run, "pretrain.py:continued", start, *flags, *more)
    assert "step 1/1" in shown and "new:" not in shown and "left behind" not in shown
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert [row["temperature"] for row in rows if "temperature" in row] == [0.5]
    assert open_pretrained(str(first)).temperature == 0.5
    flags = [f"--config.init_from={first}", f"--config.data={other}", *flags, "--config.vocabulary=auto"]
    shown = succeed(run, "finetune.py:10h", *flags, f"--workdir={tuned}")
    assert "step 1/1" in shown and "new: symbols" in shown


def test_evaluated_and_written_again_without_training(corpus, tmp_path, run):
    """A released CTC model is evaluated as it is; written again, it is what it was."""
    released = RELEASED / "sew_ctc"
    start, table, again = f"--config.init_from=hf:{released}", tmp_path / "table", tmp_path / "again"
    succeed(run, "evaluate.py", start, f"--config.data={corpus}", "--config.repeats=1", f"--workdir={table}")
    assert [row["setting"] for row in json.loads((table / "tradeoff.json").read_text())] == ["s1q1k1", "s3q1k1"]
    shown = succeed(run, "export.py", start, "--config.setting=s3q1k1", f"--workdir={again}")
    assert "SEWForCTC" in shown
    before, after = (sorted(load_file(path / "model.safetensors").items()) for path in (released, again))
    assert len(before) == len(after)
    assert sorted(map(digest, before)) == sorted(map(digest, after))


def digest(item):
    return item[1].shape, item[1].tobytes()


BAD = {
    "no such folder": (["finetune.py", "--config.init_from=hf:/nowhere"], "/nowhere is no folder"),
    "hf: forgotten": (["evaluate.py", "--config.init_from=WAV2VEC2"], "write hf:"),
    "no CTC head": (["evaluate.py", "--config.init_from=hf:WAV2VEC2"], "has no CTC head yet"),
    "pooling": (["export.py", "--config.init_from=hf:SEW_CTC", "--config.setting=s3q2k1"], "s3q1k1 can be exported"),
    "merging": (
        ["export.py", "--config.init_from=hf:SEW_CTC", "--config.setting=s2q1k1m0.1"],
        "merging or rates, as s2q1k1m0.1",
    ),
    "no up-sampler": (["export.py", "--config.init_from=hf:SEW_CTC", "--config.setting=s2q1k1"], "has those of: 3"),
    "no origin": (["pretrain.py:inherit", "--config.data=CORPUS"], "init_from is empty; pretrain:inherit"),
    "no codebook": (
        ["pretrain.py:continued", "--config.init_from=hf:WAV2VEC2", "--config.data=CORPUS"],
        "wav2vec2 has no codebook and heads of pre-training to go on with; name",
    ),
    "no form": (
        ["export.py", "--config.init_from=hf:SEW_CTC", "--config.format=tflite"],
        "format: 'tflite' is unknown",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case, corpus, tmp_path, run):
    arguments, message = BAD[case]
    names = {"WAV2VEC2": str(RELEASED / "wav2vec2"), "SEW_CTC": str(RELEASED / "sew_ctc"), "CORPUS": str(corpus)}
    for name, path in names.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    done = run(*arguments, f"--workdir={tmp_path}")
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_head_of_another_alphabet_stays_behind(corpus, tmp_path, run):
    start = f"--config.init_from=hf:{RELEASED / 'sew_ctc'}"
    flags = [start, f"--config.data={corpus}", *SMALL, "--config.compression.names=s1q1k1", f"--workdir={tmp_path}"]
    shown = succeed(run, "finetune.py", *flags, "--config.vocabulary=auto", "--config.num_steps=1")
    assert "new: symbols" in shown and "symbols" in shown.split("left behind: ")[1].splitlines()[0]


def test_a_damaged_checkpoint_is_one_line(corpus, tmp_path, run):
    folder = shutil.copytree(RELEASED / "wav2vec2_ctc", tmp_path / "damaged")
    tensors = folder / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:5000])
    done = run(
        "evaluate.py", f"--config.init_from=hf:{folder}", f"--config.data={corpus}", f"--workdir={tmp_path / 'out'}"
    )
    assert done.returncode == 2 and "model.safetensors cannot be read" in done.stderr and done.stderr.count("\n") == 1
