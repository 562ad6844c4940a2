"""The card of an exported model: true, complete, and its lines run."""

import json
import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import jax
import numpy as np
import pytest

from sew_jax import __version__
from sew_jax.checkpoints.hf_config import Architecture
from sew_jax.checkpoints.pretrained import Pretrained
from sew_jax.compression import Compression
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.greedy import greedy
from sew_jax.decoding.recognizer import Recognizer, log_probs
from sew_jax.export.model_card import programs_use, transformers_use, write_card
from sew_jax.export.stablehlo import write_programs
from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.cost import count_macs
from sew_jax.models.ctc import CTCModel
from sew_jax.runtime.sharding import make_mesh
from sew_jax.tables import markdown_table
from tests.evaluation.test_tradeoff import point

# Not letters in their usual order, with an unusual delimiter and a blank in the midst
VOCABULARY = Vocabulary(("A", "B", "<pad>", "Ö", "_", "<s>"), delimiter="_", eos=None, unknown_symbol=None)
BACKBONE = BackboneConfig(frontend="logmel", width=16, layers=2, heads=2, ffn_width=16, pos_kernel=3, pos_groups=2)
SETTINGS = [Compression(), Compression(2, (1, 2))]
RECORD = {
    "config": {"mode": "finetune", "data": "corpus", "num_steps": 12, "seed": 0, "optim": {"lr": 0.5}, "split": ""},
    "data": {"utterances": 34, "sha256": "0123456789abcdef"},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    head = CTCHeadConfig(symbols=len(VOCABULARY), blank=VOCABULARY.blank)
    model = CTCModel(BACKBONE, head)
    params = jax.jit(model.initialize)(jax.random.key(3))["params"]
    mesh = make_mesh(1, 1, jax.devices()[:1])
    recognizer = Recognizer("runs/small", "update 12", model, params, VOCABULARY, SETTINGS, mesh)
    programs = write_programs(folder, recognizer, SETTINGS)
    VOCABULARY.save(folder)
    pretrained = Pretrained("runs/small", BACKBONE, head, VOCABULARY, SETTINGS, None, None, RECORD)
    points = [point(wer=0.123), point("s2q1.2k1", 0.234, 1.0)]
    write_card(
        folder,
        pretrained,
        "update 12",
        SETTINGS,
        points,
        programs_use(programs, VOCABULARY, BACKBONE.frame_samples),
        "jax",
    )
    return folder, recognizer


def card_of(exported) -> str:
    return (exported[0] / "README.md").read_text(encoding="utf-8")


def test_its_lines_transcribe_in_a_fresh_process(exported):
    folder, recognizer = exported
    audio = np.random.default_rng(0).integers(-9000, 9000, 6500, np.int16)
    with wave.open(str(folder / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(audio.tobytes())
    (lines,) = re.findall(r"```python\n(.*?)```", card_of(exported), re.S)
    script = f"import sys; sys.modules['sew_jax'] = sys.modules['flax'] = None\n{lines}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONUTF8": "1"}
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    batch = {"wave": audio[None], "length": np.array([len(audio)])}
    found, frames = log_probs(recognizer.model, recognizer.params, batch, SETTINGS[0])
    expected = greedy(np.asarray(found.argmax(-1))[0, : frames[0]], VOCABULARY)
    assert expected and " ".join(done.stdout.split()) == expected


def test_it_says_setting_cost_and_results(exported):
    card = card_of(exported)
    front = card.split("---\n")[1]
    assert "library_name: jax\npipeline_tag: automatic-speech-recognition\ntags:\n- sew_jax\n" in front
    assert "license" not in front
    for setting in SETTINGS:
        macs = count_macs(BACKBONE, setting, 160_000).total
        assert (
            f"| {setting} | {macs / 10 / 1e9:.3g} | {macs / count_macs(BACKBONE, SETTINGS[0], 160_000).total:.2f} |"
            in card
        )
        assert f"{setting}.stablehlo | {setting} | 240 + {320 * setting.squeeze**2} n |" in card
    assert (
        "| s1q1k1 | test | greedy | 12.30% |" in card
        and "| s2q1.2k1 | test | greedy | 23.40% |" in card
        and "0.50" in card
    )
    assert "Measured on cpu, jax float32" in card and "test: 20 utterances (1.7 minutes, 60 words)" in card


def test_it_says_how_the_model_was_made(exported):
    card = card_of(exported)
    assert f"sew_jax {__version__}" in card and f"jax {jax.__version__}" in card
    for key, value in (
        ("mode", "finetune"),
        ("data", "corpus"),
        ("num_steps", "12"),
        ("seed", "0"),
        ("optim.lr", "0.5"),
    ):
        assert f"| {key} | {value} |" in card
    assert "\n| split |" not in card  # which is empty
    assert "| utterances | 34 (SHA-256 of their list 0123456789ab) |" in card and "| state | update 12 |" in card


def test_what_is_not_known_is_not_said(tmp_path):
    pretrained = Pretrained("hf:some/model", BackboneConfig(), None, None, [Compression()], None, None)
    use = transformers_use(Architecture(BackboneConfig(), None, 1), "Wav2Vec2Model")
    write_card(tmp_path, pretrained, "wav2vec2", [Compression()], [], use, "transformers")
    card = (tmp_path / "README.md").read_text()
    assert "Word error rate" not in card and "pipeline_tag" not in card and "| mode |" not in card
    assert "`Wav2Vec2Model` of transformers" in card and "hf:some/model" in card


@pytest.mark.parametrize(
    ("head", "loaders"),
    [
        (CTCHeadConfig(), ("AutoModelForCTC", "AutoProcessor")),
        (PretrainHeadConfig(), ("AutoModelForPreTraining", "AutoFeatureExtractor")),
        (None, ("AutoModel", "AutoFeatureExtractor")),
    ],
)
def test_each_head_has_its_loader(head, loaders):
    use = transformers_use(Architecture(BackboneConfig(), head, 1), "X")
    (lines,) = re.findall(r"```python\n(.*?)```", use, re.S)
    compile(lines, "card", "exec")
    assert f"from transformers import {', '.join(loaders)}\n" in lines


def test_cells_of_a_table_stay_cells():
    text = markdown_table(("a", "b"), [("x|y", "two\nlines"), ("<b>", "*a_b*")])
    assert text.splitlines()[2:] == ["| x\\|y | two lines |", "| &lt;b> | \\*a_b\\* |"]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines())


def test_vocabulary_is_in_the_order_that_the_lines_rely_on(exported):
    symbols = json.loads((Path(exported[0]) / "vocab.json").read_text(encoding="utf-8"))
    assert list(symbols.values()) == list(range(len(VOCABULARY)))
