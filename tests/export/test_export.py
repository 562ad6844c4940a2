"""Exported programs in a fresh process that has jax and numpy alone, against the model on each utterance by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import export as export_config
from sew_jax.compression import Compression
from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding.recognizer import load_recognizer
from sew_jax.errors import UserError
from sew_jax.evaluation.outputs import write_tradeoff
from sew_jax.export import stablehlo
from sew_jax.export.export import export
from sew_jax.export.model_card import programs_use
from sew_jax.models.frontend import frame_count
from sew_jax.runtime.sharding import make_mesh
from tests.evaluation.test_tradeoff import point

RELEASED = Path(__file__).parents[1] / "released"
LENGTHS = {1: [5000], 3: [8000, 2999, 5000]}  # samples of the batches

# What a reader of the card has: no module of ours, nor what ours are made of
FRESH = """
import sys
for name in ("sew_jax", "flax", "orbax", "ml_collections"):
    sys.modules[name] = None
import jax
import jax.export
import numpy as np

weights = dict(np.load("weights.npz"))
given, found = np.load("inputs.npz"), {}
for file in sys.argv[1:]:
    program = jax.jit(jax.export.deserialize(bytearray(open(file, "rb").read())).call)
    for batch in ("1", "3"):
        log_probs, frames = program(weights, given[f"{file}/wave{batch}"], given["length" + batch])
        found |= {f"{file}/{batch}/log_probs": log_probs, f"{file}/{batch}/frames": frames}
np.savez("outputs.npz", **found)
"""


def config(model, **changes):
    made = export_config.get_config()
    made.init_from, made.format = f"hf:{RELEASED / model}", "stablehlo"
    made.update_from_flattened_dict(changes)
    return made


@pytest.mark.parametrize(("name", "settings"), [("wav2vec2_ctc", ["s2q2k1m0.2"]), ("sew_ctc", ["s3q1k1"])])
def test_a_fresh_process_gets_the_numbers_of_the_model(name, settings, tmp_path):
    export(config(name, setting=",".join(settings)), tmp_path)
    files = {setting: f"{setting}.stablehlo" for setting in settings}
    random, inputs, waves = np.random.default_rng(1), {}, {}
    recognizer = load_recognizer(f"hf:{RELEASED / name}", "", make_mesh(1, 1, jax.devices()[:1]))
    for batch, lengths in LENGTHS.items():
        waves[batch] = random.integers(-5000, 5000, (batch, max(lengths)), np.int16)
        inputs[f"length{batch}"] = np.array(lengths, np.int32)
        for setting, file in files.items():  # of two lengths, padded with anything
            form = stablehlo.lengths(recognizer.model.backbone, Compression.parse(setting))
            samples = stablehlo.Program(file, Compression.parse(setting), *form).padded(max(lengths)) + batch * form[0]
            padding = np.full((batch, samples - max(lengths)), 12_345, np.int16)
            inputs[f"{file}/wave{batch}"] = np.concatenate([waves[batch], padding], 1)
    np.savez(tmp_path / "inputs.npz", **inputs)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FRESH, *files.values()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    outputs = np.load(tmp_path / "outputs.npz")

    apply = jax.jit(recognizer.model.apply, static_argnums=3, static_argnames="deterministic")
    for setting in settings:
        for batch, lengths in LENGTHS.items():
            for i, length in enumerate(lengths):  # alone and without padding
                wave = waves[batch][i : i + 1, :length]
                variables, compression = {"params": recognizer.params}, Compression.parse(setting)
                logits, _ = apply(variables, wave, np.array([length]), compression, deterministic=True)
                expected = np.asarray(logits[0] - jax.nn.logsumexp(logits[0], -1, keepdims=True))
                frames = outputs[f"{files[setting]}/{batch}/frames"][i]
                assert frames == frame_count(recognizer.model.backbone, length) == len(expected)
                found = outputs[f"{files[setting]}/{batch}/log_probs"][i, :frames]
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_programs_are_for_every_platform(dtype, tmp_path):
    export(config("wav2vec2_ctc", dtype=dtype), tmp_path)
    files = "README.md s1q1k1.stablehlo weights.npz vocab.json tokenizer_config.json"
    assert {p.name for p in tmp_path.iterdir()} == set(files.split())
    program = jax.export.deserialize(bytearray((tmp_path / "s1q1k1.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(size) for size in program.out_avals[0].shape[:2]] == ["b", "n"]
    weights = np.load(tmp_path / "weights.npz")
    assert all(weights[name].dtype == np.float32 for name in weights)


def test_what_differs_from_the_model_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setitem(stablehlo._TOLERANCE, "float32", -1.0)
    with pytest.raises(RuntimeError, match="differs from the model by"):
        export(config("wav2vec2_ctc"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_budget_picks_the_setting_and_the_card_tells_what_it_reached(tmp_path):
    int8 = point("s1q1k1", 0.1, 0.9, engine=("jax", "int8"))  # which no program here computes
    write_tradeoff([point(), int8, point("s3q1k1", 0.1234, 1.0)], tmp_path)
    options = {"budget": "0.6", "tradeoff": str(tmp_path)}
    export(config("sew_ctc", **options), tmp_path / "export")
    assert (tmp_path / "export/s3q1k1.stablehlo").is_file()
    card = (tmp_path / "export/README.md").read_text()
    assert "| s3q1k1 | test | greedy | 12.34% |" in card and "10.00%" not in card


def test_where_no_setting_is_named_it_is_one_that_was_trained(tmp_path):
    export(config("sew_ctc", format="hf"), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["model_type"], written["squeeze_factor"]) == ("sew", 3)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["processor_class"] == "Wav2Vec2Processor"


def test_the_card_says_how_often_frames_come():
    program = stablehlo.Program("s1q1k1.stablehlo", Compression(), 640, 0)
    assert "a frame each 40 ms" in programs_use([program], Vocabulary(LETTERS), 640)


def test_a_job_of_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="export runs in one process; start it on one host"):
        export(config("wav2vec2_ctc"), tmp_path)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (
            "wav2vec2_ctc",
            {"format": "tflite"},
            "choose one of hf, stablehlo, onnx, sew_jax",
        ),
        ("wav2vec2_ctc", {"setting": "s1q1.2.1.1.1.1k1"}, "6 factors, but the model has"),
        ("wav2vec2_ctc", {"setting": "s1q1k1,fast"}, "setting 'fast' is unknown"),
        ("wav2vec2_ctc", {"setting": "s1q1k1,s2q1k1", "format": "hf"}, "a Hugging Face folder holds one, not 2"),
        ("wav2vec2_ctc", {"setting": "s1q1k1", "budget": "0.5"}, "are both given"),
        ("wav2vec2_ctc", {"tradeoff": "TABLE", "setting": "s2q1k1"}, "has no row for s2q1k1; evaluate it with"),
        ("wav2vec2_ctc", {"tradeoff": "nowhere"}, r"run configs/evaluate\.py first"),
        ("wav2vec2_pretraining", {}, "has no CTC head yet"),
    ],
    ids=str,
)
def test_bad_input(model, changes, message, tmp_path):
    write_tradeoff([point()], tmp_path)
    changes = {k: str(tmp_path) if v == "TABLE" else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message):
        export(config(model, **changes), tmp_path / "export")
    assert not (tmp_path / "export").exists()
