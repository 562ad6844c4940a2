"""ONNX graphs in ONNX Runtime against the model: alone, padded with anything, and batched; every front end and setting.

tests/onnx_exact.py, run by hand, compares each of them with each, in OpenVINO too.
"""

import functools
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from sew_jax.compression import Compression
from sew_jax.decoding.recognizer import load_recognizer, log_probs
from sew_jax.engines import run_times
from sew_jax.engines.run_times import Engine, open_session
from sew_jax.errors import UserError
from sew_jax.models.config import CTCHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frontend import frame_count
from sew_jax.runtime.sharding import make_mesh
from tests.models.build import init, small

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from sew_jax.engines.files import WEIGHTS_FILE, write_graphs  # noqa: E402 - which needs onnx

RELEASED = Path(__file__).parents[1] / "released"
LENGTHS = np.array([8000, 2999, 5037, 300])  # samples; the last one is shorter than a frame
SYMBOLS = 11


def small_model(frontend, **options):
    """A small backbone and a head whose parameters are drawn."""
    backbone, params = init(small(frontend, **options))
    random = np.random.default_rng(1)
    width = backbone.config.width
    head = {"kernel": random.normal(size=(width, SYMBOLS)) / width**0.5, "bias": random.normal(size=SYMBOLS)}
    head = {name: x.astype(np.float32) for name, x in head.items()}
    return CTCModel(backbone.config, CTCHeadConfig(symbols=SYMBOLS)), {"backbone": params, "symbols": head}


@functools.cache
def released_model(name):
    recognizer = load_recognizer(f"hf:{RELEASED / name}", "float32", make_mesh(1, 1, jax.devices()[:1]))
    return recognizer.model, jax.device_get(recognizer.params)


def waves():
    """(B, N), the shorter ones followed by NaN, and the same followed by zeros."""
    wave_BxN = np.random.default_rng(0).normal(0, 0.1, (len(LENGTHS), LENGTHS.max())).astype(np.float32)
    valid = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    return np.where(valid, wave_BxN, np.nan).astype(np.float32), np.where(valid, wave_BxN, 0).astype(np.float32)


def expected(model, params, setting):
    batch = {"wave": waves()[1], "length": LENGTHS.astype(np.int32)}
    return jax.device_get(jax.jit(log_probs, static_argnums=(0, 3))(model, params, batch, setting))


def check(model, params, name, folder):
    setting = Compression.parse(name)
    found_by = open_session(
        write_graphs(folder, model, params, [setting], "float32", {})[setting], Engine("onnxruntime", "float32")
    )
    wanted, frames_B = expected(model, params, setting)
    assert frames_B.tolist() == [frame_count(model.backbone, int(n)) for n in LENGTHS] and frames_B[-1] == 0
    together, counts_B = found_by(waves()[0], LENGTHS)
    assert counts_B.tolist() == frames_B.tolist()
    for i, (length, frames) in enumerate(zip(LENGTHS, frames_B, strict=True)):
        alone, (count,) = found_by(waves()[0][i : i + 1, :length], LENGTHS[i : i + 1])
        assert count == frames
        for found in (together[i], alone[0]):
            np.testing.assert_allclose(found[:frames], wanted[i, :frames], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("wav2vec2_ctc", "s2q1k1"),  # group norm
        ("hubert_ctc", "s1q1k1"),
        ("xlsr_ctc", "s4q2k2"),  # norms of layers and of the wave
        ("sew_ctc", "s3q2k1"),  # drops its tail; frames of another up-sampler
    ],
)
def test_released_families(name, setting, tmp_path):
    check(*released_model(name), setting, tmp_path)


@pytest.mark.parametrize(
    ("frontend", "setting", "options"),
    [
        ("logmel", "s3q2k1", {"mel_scale": "utterance", "mel_top_hz": 7000, "upsampler": "repeat"}),
        ("logmel", "s4q2.3k2", {"pool_ffn": True}),
        ("logmel", "s1q1k1", {"input_norm": False, "norm_epsilon": 0.1}),
    ],
)
def test_what_our_own_models_have(frontend, setting, options, tmp_path):
    check(*small_model(frontend, **options), setting, tmp_path)


def test_where_no_system_says_which_cores_are_ours(monkeypatch, tmp_path):
    monkeypatch.delattr(run_times.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(run_times, "_OnnxRuntime", lambda path, engine, threads: threads)
    assert open_session(tmp_path, Engine("onnxruntime", "float32")) == os.cpu_count()


def test_rounded_weights_change_little(tmp_path):
    """And something: a graph that ignored its kind would be exact."""
    model, params = small_model("logmel", pool_ffn=True)
    setting = Compression.parse("s4q2.3k2")  # whose program is there already
    wanted, frames_B = expected(model, params, setting)
    for kind, low, high in (("float16", 1e-5, 0.02), ("int8", 1e-3, 0.4)):
        (tmp_path / kind).mkdir()
        path = write_graphs(tmp_path / kind, model, params, [setting], kind, {})[setting]
        found, _ = open_session(path, Engine("onnxruntime", "int8"))(waves()[0], LENGTHS)
        difference = max(abs(found[i, :n] - wanted[i, :n]).max() for i, n in enumerate(frames_B[:-1]))
        assert low < difference < high


def test_openvino_rounds_the_products_of_layers_alone(tmp_path):
    """And each frame by itself: an utterance's numbers are the same in a batch."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    model, params = small_model("logmel", pool_ffn=True)
    setting = Compression.parse("s4q2.3k2")
    path = write_graphs(tmp_path, model, params, [setting], Engine("openvino", "int8").weights, {})[setting]
    rounded = run_times._rounded(openvino.Core().read_model(str(path)))
    kinds = {
        op.get_friendly_name(): op.get_element_type() for op in rounded.get_ops() if op.get_type_name() == "Constant"
    }
    whole = [name for name, kind in kinds.items() if kind == openvino.Type.i8 and name.endswith("kernel")]
    assert len(whole) == 6 * model.backbone.layers and all(name.startswith("layer_") for name in whole)

    wanted, frames_B = expected(model, params, setting)
    session = open_session(path, Engine("openvino", "int8"))
    together, _ = session(waves()[0], LENGTHS)
    for i, (length, frames) in enumerate(zip(LENGTHS[:3], frames_B, strict=False)):
        alone, _ = session(waves()[0][i : i + 1, :length], LENGTHS[i : i + 1])
        np.testing.assert_allclose(together[i, :frames], alone[0, :frames], rtol=0, atol=1e-4)
        assert 1e-4 < abs(alone[0, :frames] - wanted[i, :frames]).max() < 0.4


def test_settings_share_their_weights_and_files_are_sound(tmp_path):
    model, params = small_model("group")
    settings = [Compression(), Compression(1, 2, 2), Compression(2)]
    sizes = []
    for some in (settings[:1], settings[:2], settings):
        paths = write_graphs(tmp_path, model, params, some, "float32", {"sample_rate": "16000"})
        sizes.append((tmp_path / WEIGHTS_FILE).stat().st_size)
    # squeeze 2 alone has a layer of its own, its up-sampler
    upsampler = params["backbone"]["encoder"]["upsample_2"]["difference"]["kernel"].nbytes
    assert sizes[0] == sizes[1] and upsampler <= sizes[2] - sizes[1] < upsampler + 64
    for path in paths.values():
        onnx.checker.check_model(str(path), full_check=True)
        assert {one.domain for one in onnx.load(path, load_external_data=False).opset_import} == {""}


@pytest.mark.parametrize("name", ["s2q1k1m0.1", "r0.4q1k1"])
def test_merging_and_rates_are_refused_by_name(name, tmp_path):
    model, params = small_model("logmel")
    with pytest.raises(
        UserError, match=rf"setting: graphs of ONNX cannot express merging or a rate, as {re.escape(name)} has"
    ):
        write_graphs(tmp_path, model, params, [Compression.parse(name)], "float32", {})


@pytest.mark.parametrize(
    "frontend, options, message",
    [
        ("fbank25", {}, "fbank25"),
        ("logmel", dict(pos_layers=3), "model.pos_layers: 3 has no ONNX graph yet"),
        ("logmel", dict(rel_buckets=16), "model.rel_buckets: 16 has no ONNX graph yet"),
    ],
)
def test_parts_without_a_graph_are_refused_by_name(frontend, options, message, tmp_path):
    model, params = small_model(frontend, **options)
    with pytest.raises(UserError, match=message):
        write_graphs(tmp_path, model, params, [Compression()], "float32", {})
