"""A fine-tuned model as ONNX files: a graph for each setting, of any batch and length, that share their weights."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.data.vocabulary import VOCABULARY_FILE, Vocabulary
from sew_jax.decoding.recognizer import Recognizer, log_probs
from sew_jax.engines.files import WEIGHTS_FILE, write_graphs
from sew_jax.engines.run_times import Engine, open_session
from sew_jax.export.model_card import joined
from sew_jax.files import write_whole
from sew_jax.models.ctc import CTCModel
from sew_jax.rates import SAMPLE_RATE

EXAMPLE_FILE, PAGE_FILE = "example.py", "transcribe.html"
_PAGE = Path(__file__).with_name("onnx_page.html")
_WEB_RUNTIME = "1.30.0"  # of onnxruntime-web
# Largest difference to the model, relative to its largest log-probability. Rounded weights tell of gross errors alone:
# what they cost is for an evaluation to say
_TOLERANCE = {"float32": 2e-5, "float16": 5e-2, "int8": 3e-1}


def write_onnx(folder: Path, recognizer: Recognizer, settings: Sequence[Compression], kind: str) -> None:
    """Writes SETTING.onnx for each setting, their weights, and an example and a web page that run them.

    Each is run by ONNX Runtime and compared with the model first.

    Args:
      recognizer: computes in float32.
      kind: of the weights: float32, float16 or int8.

    Raises:
      UserError: a setting does not fit the model's layers.
      RuntimeError: a graph computes something else.
    """
    assert isinstance(recognizer.model, CTCModel)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial_") as partial:
        about = {"sample_rate": str(SAMPLE_RATE)}
        paths = write_graphs(Path(partial), recognizer.model, recognizer.params, settings, kind, about)
        for done, (setting, path) in enumerate(paths.items(), 1):
            difference = _compare(recognizer, setting, path, kind)
            say(f"  {done}/{len(paths)} {path.name}: within {difference:.1e} of the model")
        for path in (Path(partial) / WEIGHTS_FILE, *paths.values()):
            os.replace(path, folder / path.name)
    write_whole(folder / EXAMPLE_FILE, _example(recognizer.vocabulary, settings[0]).encode())
    write_whole(folder / PAGE_FILE, web_page(recognizer.vocabulary, settings).encode())


def _compare(recognizer: Recognizer, setting: Compression, path: Path, kind: str) -> float:
    """Largest difference between a graph and the model on noise, one utterance whole and one half as long."""
    wave_BxN = np.random.default_rng(0).normal(0, 0.1, (2, 2 * SAMPLE_RATE)).astype(np.float32)
    length_B = np.array([2 * SAMPLE_RATE, SAMPLE_RATE])
    found, frames_B = open_session(path, Engine("onnxruntime", "float32"))(wave_BxN, length_B)
    compute = jax.jit(log_probs, static_argnums=(0, 3))
    batch = {"wave": wave_BxN, "length": length_B.astype(np.int32)}
    expected, expected_B = jax.device_get(compute(recognizer.model, recognizer.params, batch, setting))
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= _TOLERANCE[kind] or not np.array_equal(frames_B, expected_B):
        raise RuntimeError(f"the graph of {setting} differs from the model by {difference:.1e}, so it is not written")
    return difference


def web_page(vocabulary: Vocabulary, settings: Sequence[Compression]) -> str:
    """A page that transcribes in a browser; onnx_page.html says how."""
    pieces = []
    for i, symbol in enumerate(vocabulary.symbols):
        if vocabulary.is_silent(i):
            pieces.append("")
        elif vocabulary.is_word_end(i):
            pieces.append(" ")
        else:
            pieces.append(symbol if vocabulary.delimiter else f"{symbol} ")
    model = {
        "settings": [str(setting) for setting in settings],
        "sample_rate": SAMPLE_RATE,
        "pieces": pieces,
        "lower_case": vocabulary.lower_case,
    }
    text = json.dumps(model).replace("<", "\\u003c")  # of a symbol such as </s>, which would end the script
    page = _PAGE.read_text("utf-8").replace("MODEL", text, 1)
    return page.replace("RUNTIME", _WEB_RUNTIME, 1).replace("WEIGHTS", WEIGHTS_FILE)


def _example(vocabulary: Vocabulary, setting: Compression) -> str:
    return f'''\
"""Text of a WAV file, with onnxruntime and numpy alone: python {EXAMPLE_FILE} speech.wav [{setting}.onnx]"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(__file__).parent
model = folder / (sys.argv[2] if len(sys.argv) > 2 else "{setting}.onnx")
session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
symbols = {{i: symbol for symbol, i in json.loads((folder / "{VOCABULARY_FILE}").read_text("utf-8")).items()}}
with wave.open(sys.argv[1]) as file:
    if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != ({SAMPLE_RATE}, 1, 2):
        sys.exit("make it 16 bits, mono: ffmpeg -i FILE -ar {SAMPLE_RATE} -ac 1 -c:a pcm_s16le new.wav")
    audio = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15

# of several utterances: (B, N) and their lengths (B,), the shorter ones padded with anything
wave_BxN, length_B = audio[None], np.array([len(audio)], np.int64)
log_prob_BxTxV, frames_B = session.run(None, {{"wave": wave_BxN, "length": length_B}})
path = log_prob_BxTxV[0, : frames_B[0]].argmax(-1)
path = path[np.diff(path, prepend=-1) != 0]  # a symbol that goes on is one symbol
print({joined(vocabulary)})
'''
