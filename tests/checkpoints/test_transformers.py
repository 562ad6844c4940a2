"""The published sizes against transformers itself; runs where torch and transformers are installed."""

import json

import jax
import numpy as np
import pytest

from sew_jax.checkpoints.hf_folder import open_released, write_folder
from sew_jax.compression import Compression
from sew_jax.models.classifier import ClassifierModel
from sew_jax.models.config import CTCHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.frame_classifier import FrameClassifierModel

torch, hf = pytest.importorskip("torch"), pytest.importorskip("transformers")
from tests.released import make  # noqa: E402
from tests.released.inputs import VOCABULARY, waves  # noqa: E402

pytestmark = pytest.mark.transformers
BASE = dict(layerdrop=0.0)  # the defaults of the configuration classes are the base sizes
LARGE = BASE | dict(num_hidden_layers=4, hidden_size=1024, num_attention_heads=16, intermediate_size=4096) | make.LARGE
DATA2VEC = BASE | dict(num_conv_pos_embeddings=5, conv_pos_kernel_size=19)
SIZES = {
    "wav2vec2 base": ("Wav2Vec2", BASE),
    "wav2vec2 large": ("Wav2Vec2", LARGE),  # its width, and a few of its layers
    "hubert base": ("Hubert", BASE),
    "hubert large": ("Hubert", LARGE),
    "unispeech large": ("UniSpeech", LARGE),
    "unispeech-sat base": ("UniSpeechSat", BASE),
    "data2vec base": ("Data2VecAudio", DATA2VEC),
    "data2vec large": (
        "Data2VecAudio",
        DATA2VEC | {key: x for key, x in LARGE.items() if key not in ("do_stable_layer_norm", "feat_extract_norm")},
    ),
    "mms": ("Wav2Vec2", LARGE | dict(adapter_attn_dim=16)),
    "wavlm base": ("WavLM", BASE),
    "wavlm large": ("WavLM", LARGE | dict(conv_bias=False)),
    "sew tiny": (
        "SEW",
        BASE | dict(hidden_size=512, num_attention_heads=8, intermediate_size=2048, num_conv_pos_embeddings=31),
    ),
    "sew small": ("SEW", BASE | dict(num_conv_pos_embeddings=31)),
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes_there_and_back(size, tmp_path):
    """Logits of a random model of that size, then those of the folder that we write of it."""
    family, sizes = SIZES[size]
    torch.manual_seed(0)
    model = getattr(hf, f"{family}ForCTC")(getattr(hf, f"{family}Config")(**sizes)).eval()
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    model.save_pretrained(theirs)
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=True)
    extractor.save_pretrained(theirs)
    (theirs / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(VOCABULARY)}))

    folder = open_released(str(theirs))
    backbone, head, squeeze = folder.architecture
    assert isinstance(head, CTCHeadConfig)
    params = folder.parameters()
    forward = jax.jit(CTCModel(backbone, head).apply, static_argnums=3, static_argnames="deterministic")
    lengths = (16_000, 23_456)
    utterances = [np.random.default_rng(n).normal(size=n).astype(np.float32) for n in lengths]
    padded = np.stack([np.pad(wave, (0, 24_000 - len(wave)), constant_values=9) for wave in utterances])
    logits, frames = forward({"params": params}, padded, np.array(lengths), Compression(squeeze), deterministic=True)

    def assert_close(row, expected):
        expected = expected.numpy()
        assert np.abs(logits[row, : frames[row]] - expected).max() <= 1e-4 * np.abs(expected).max()

    for row, wave in enumerate(utterances):
        inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            expected = model(inputs.input_values).logits[0]
        assert frames[row] == len(expected)
        assert_close(row, expected)
    if sizes.get("feat_extract_norm") == "layer":  # of others, padding changes what transformers computes
        options = dict(sampling_rate=16_000, return_tensors="pt", padding=True, return_attention_mask=True)
        batch = extractor(utterances, **options)
        with torch.no_grad():
            together = model(batch.input_values, attention_mask=batch.attention_mask).logits
        for row in range(2):
            assert_close(row, together[row, : frames[row]])

    write_folder(ours, folder.family, folder.architecture, params, folder.vocabulary)
    again, report = type(model).from_pretrained(ours, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        np.testing.assert_array_equal(again.eval()(inputs.input_values).logits[0].numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("Wav2Vec2", "ForXVector"),
        ("Wav2Vec2", "ForAudioFrameClassification"),
        ("UniSpeech", "ForPreTraining"),
        ("UniSpeechSat", "ForPreTraining"),
        ("UniSpeechSat", "ForXVector"),
        ("Data2VecAudio", "ForAudioFrameClassification"),
        ("WavLM", "ForXVector"),
    ],
)
def test_the_backbone_of_another_class(family, kind, tmp_path):
    """It is that which the class holds, its head is told."""
    small = make.BASE | (make.SEW if family == "SEW" else make.CONV)
    model = getattr(hf, f"{family}{kind}")(getattr(hf, f"{family}Config")(**small, use_weighted_layer_sum=True))
    model.save_pretrained(tmp_path / "whole")
    model.base_model.save_pretrained(tmp_path / "backbone")
    whole, backbone = (open_released(str(tmp_path / name)) for name in ("whole", "backbone"))
    jax.tree.map(np.testing.assert_array_equal, whole.parameters(), backbone.parameters())
    heads = {"quantizer", "project_q"} if kind == "ForPreTraining" else {"classifier", "layer_weights"}
    assert heads <= set(whole.left_behind) and backbone.left_behind == []


@pytest.mark.parametrize("layer_sum", [False, True])
@pytest.mark.parametrize(
    "family", ["Wav2Vec2", "Hubert", "UniSpeech", "UniSpeechSat", "Data2VecAudio", "WavLM", "SEW", "SEWD"]
)
def test_labels_there_and_back(family, layer_sum, tmp_path):
    """Logits of each family's class for labels, alone and in a padded batch, and of the folder that we write of it."""
    if layer_sum and family.startswith("SEW"):
        pytest.skip("is refused")
    sizes = {"Data2VecAudio": make.DATA2VEC, "WavLM": make.WAVLM, "SEWD": make.SEWD, "SEW": make.BASE | make.SEW}
    sizes = sizes.get(family, make.BASE | make.CONV) | make.LABELS | dict(use_weighted_layer_sum=layer_sum)
    torch.manual_seed(0)
    cls = getattr(hf, f"{family}ForSequenceClassification")
    if family not in ("Data2VecAudio", "SEW", "SEWD"):
        sizes |= make.LARGE
    model = cls(getattr(hf, f"{family}Config")(**sizes)).eval()
    if layer_sum:
        model.layer_weights.data += torch.randn_like(model.layer_weights)
    model.save_pretrained(tmp_path / "theirs")
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    extractor.save_pretrained(tmp_path / "theirs")
    folder = open_released(str(tmp_path / "theirs"))
    assert folder.labels.names == make.NAMES and not folder.left_behind
    backbone, head, squeeze = folder.architecture
    forward = jax.jit(ClassifierModel(backbone, head).apply, static_argnums=3, static_argnames="deterministic")
    params, lengths = folder.parameters(), np.array([len(wave) for wave in waves()])
    padded = np.stack([np.pad(wave, (0, 7000 - len(wave)), constant_values=9) for wave in waves()])
    ours, _ = forward({"params": params}, padded, lengths, Compression(squeeze), deterministic=True)
    write_folder(tmp_path / "ours", folder.family, folder.architecture, params, None, folder.labels)
    again, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()) and list(again.config.id2label.values()) == list(make.NAMES), report
    for row, wave in enumerate(waves()):
        inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            expected, written = (one.eval()(inputs.input_values).logits[0].numpy() for one in (model, again))
        assert np.abs(ours[row, 0] - expected).max() <= 1e-5 * np.abs(expected).max()
        np.testing.assert_array_equal(written, expected)
    if "do_stable_layer_norm" in sizes:  # of others, padding changes what transformers computes
        batch = extractor(waves(), sampling_rate=16_000, return_tensors="pt", padding=True)
        with torch.no_grad():
            together = model(batch.input_values, attention_mask=batch.attention_mask).logits.numpy()
        assert np.abs(ours[:, 0] - together).max() <= 1e-5 * np.abs(together).max()


@pytest.mark.parametrize("layer_sum", [False, True])
@pytest.mark.parametrize("family", ["Wav2Vec2", "UniSpeechSat", "Data2VecAudio", "WavLM"])
def test_labels_of_frames_there_and_back(family, layer_sum, tmp_path):
    """Logits of each frame, alone and in a padded batch, of each family that has a class for it."""
    sizes = {"Data2VecAudio": make.DATA2VEC, "WavLM": make.WAVLM}.get(family, make.BASE | make.CONV) | make.LABELS
    sizes |= dict(use_weighted_layer_sum=layer_sum, problem_type="single_label_classification")
    torch.manual_seed(0)
    cls = getattr(hf, f"{family}ForAudioFrameClassification")
    model = cls(getattr(hf, f"{family}Config")(**sizes)).eval()
    model.save_pretrained(tmp_path / "theirs")
    extractor = hf.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    extractor.save_pretrained(tmp_path / "theirs")
    folder = open_released(str(tmp_path / "theirs"))
    assert folder.labels.names == tuple("_".join(name.split()) for name in make.NAMES) and not folder.left_behind
    backbone, head, squeeze = folder.architecture
    forward = jax.jit(FrameClassifierModel(backbone, head).apply, static_argnums=3, static_argnames="deterministic")
    params, lengths = folder.parameters(), np.array([len(wave) for wave in waves()])
    padded = np.stack([np.pad(wave, (0, 7000 - len(wave)), constant_values=9) for wave in waves()])
    ours, frames = forward({"params": params}, padded, lengths, Compression(squeeze), deterministic=True)
    write_folder(tmp_path / "ours", folder.family, folder.architecture, params, None, folder.labels)
    again, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    for row, wave in enumerate(waves()):
        inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            expected, written = (one.eval()(inputs.input_values).logits[0].numpy() for one in (model, again))
        assert len(expected) == frames[row]
        assert np.abs(ours[row, : frames[row]] - expected).max() <= 1e-5 * np.abs(expected).max()
        np.testing.assert_array_equal(written, expected)


@pytest.mark.parametrize("name", ["wav2vec2_ctc", "sew_ctc"])
def test_an_exported_folder_transcribes_through_the_pipeline(name, tmp_path):
    released = make.Path(__file__).parents[1] / "released" / name
    folder = open_released(str(released))
    write_folder(tmp_path, folder.family, folder.architecture, folder.parameters(), folder.vocabulary)
    wave = waves()[0]
    before, after = (
        hf.pipeline("automatic-speech-recognition", model=str(path))(wave) for path in (released, tmp_path)
    )
    assert before == after and before["text"]
