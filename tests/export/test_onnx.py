"""Exported ONNX files: the card's example in a process that has onnxruntime and numpy alone, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import export as export_config
from sew_jax.compression import Compression
from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding.greedy import greedy
from sew_jax.decoding.recognizer import load_recognizer, log_probs
from sew_jax.engines import run_times
from sew_jax.errors import UserError
from sew_jax.evaluation.outputs import write_tradeoff
from sew_jax.export.export import export
from sew_jax.export.onnx_files import web_page
from sew_jax.runtime.sharding import make_mesh
from tests.evaluation.test_tradeoff import point

MODEL = f"hf:{Path(__file__).parents[1] / 'released' / 'wav2vec2_ctc'}"


def config(**changes):
    made = export_config.get_config()
    made.init_from, made.format = MODEL, "onnx"
    made.update_from_flattened_dict(changes)
    return made


def test_the_example_needs_onnxruntime_and_numpy_alone(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    export(config(setting="s2q1k1", weights="float32"), tmp_path)
    files = "README.md example.py transcribe.html s2q1k1.onnx weights.bin vocab.json tokenizer_config.json"
    assert {path.name for path in tmp_path.iterdir()} == set(files.split())
    example = (tmp_path / "example.py").read_text()
    assert len(example.splitlines()) <= 60
    card = (tmp_path / "README.md").read_text()
    assert "library_name: onnx" in card and "python example.py speech.wav" in card

    audio = np.random.default_rng(0).integers(-9000, 9000, 32_000, np.int16)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(audio.tobytes())
    others = ("sew_jax", "jax", "flax", "onnx", "scipy", "soundfile", "torch")
    start = f"import runpy, sys; sys.modules.update(dict.fromkeys({others!r})); sys.argv = sys.argv[1:]; "
    run = [sys.executable, "-c", f"{start}runpy.run_path(sys.argv[0])", str(tmp_path / "example.py")]
    done = subprocess.run(
        [*run, str(tmp_path / "speech.wav")], capture_output=True, text=True, timeout=300, env=_bare()
    )
    assert done.returncode == 0, done.stderr
    recognizer = load_recognizer(MODEL, "float32", make_mesh(1, 1, jax.devices()[:1]))
    wave_BxN = np.repeat(audio[None].astype(np.float32) / 2**15, 2, 0)  # the shapes that the export has compared
    batch = {"wave": wave_BxN, "length": np.array([32_000, 16_000], np.int32)}
    compute = jax.jit(log_probs, static_argnums=(0, 3))
    found, frames = jax.device_get(compute(recognizer.model, recognizer.params, batch, Compression(2)))
    expected = greedy(found[0, : frames[0]].argmax(-1), recognizer.vocabulary)
    assert expected and done.stdout.split() == expected.split()


VOCABULARIES = {
    "letters": Vocabulary(LETTERS),
    "small letters": Vocabulary(LETTERS, lower_case=True),
    "phonemes": Vocabulary(("<pad>", "t͡ʃ", "a", "<unk>"), delimiter=None),
    "accents apart": Vocabulary(("<pad>", "|", "e", "\u0301", "</script>", "'"), blank_symbol="'"),
}


def test_the_page_reads_what_greedy_decoding_reads():
    """Its script, in node, on noise; vocabulary and settings stand in the page."""
    if not (node := shutil.which("node")):
        pytest.skip("needs node")
    random, script, expected = np.random.default_rng(0), [], []
    for vocabulary in VOCABULARIES.values():
        page = web_page(vocabulary, [Compression(), Compression(2)])
        assert not re.search("MODEL|RUNTIME|WEIGHTS", page) and len(re.findall("<script", page)) == 3
        model, decoder = (
            re.search(f'<script id="{name}"[^>]*>(.*?)</script>', page, re.DOTALL)[1] for name in ("model", "decoder")
        )
        assert json.loads(model)["settings"] == ["s1q1k1", "s2q1k1"] and json.loads(model)["sample_rate"] == 16_000
        noise_TxV = random.normal(size=(60, len(vocabulary))).repeat(2, axis=0)
        numbers = noise_TxV.ravel().tolist()
        script.append(f"{{{decoder}\nconsole.log(JSON.stringify(decode({numbers}, 110, {model})))}}")
        expected.append(greedy(noise_TxV[:110].argmax(-1), vocabulary))
    done = subprocess.run([node], input="\n".join(script), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected and all(expected)


def _bare():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_a_budget_picks_among_points_of_its_run_times(tmp_path):
    """In the precision of the graphs: OpenVINO rounds those of floats otherwise than graphs in int8 are rounded."""
    write_tradeoff([point(), point("s3q1k1", 0.2, 1.0, engine=("openvino", "int8"))], tmp_path)
    for weights, missing in (("float16", "onnxruntime or openvino in float32"), ("int8", "onnxruntime in int8")):
        with pytest.raises(UserError, match=f"has points of jax float32, openvino int8, none of {missing}; run"):
            export(config(budget="0.6", tradeoff=str(tmp_path), weights=weights), tmp_path / "export")


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(run_times.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="format: onnxruntime needs what is not installed; pip install onnx onnxruntime"
    ):
        export(config(setting="s1q1k1"), tmp_path / "export")


def test_bytes_are_for_onnx_alone(tmp_path):
    with pytest.raises(UserError, match="weights: int8 is for format=onnx; sew_jax takes float16 or float32"):
        export(config(format="sew_jax", weights="int8"), tmp_path)
