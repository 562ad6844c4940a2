"""The same weights under any names, class, storage and type give the parameters of the plain folder."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from sew_jax.checkpoints.hf_folder import open_released
from sew_jax.models.config import ClassifierHeadConfig
from sew_jax.models.positions import PositionalConv
from tests.checkpoints.folders import RELEASED, ctc_folder, same_as_released, write

WIDTH, G, V = 24, ".parametrizations.weight.original0", ".parametrizations.weight.original1"
# family -> (folder whose backbone is taken, prefix of its names there)
FAMILIES = {"wav2vec2": ("wav2vec2_ctc", "wav2vec2."), "hubert": ("hubert_ctc", "hubert."), "sew": ("sew", "")}
MLP = {"projector.weight": (8, WIDTH), "projector.bias": (8,), "classifier.weight": (4, 8), "classifier.bias": (4,)}
# class -> (the heads that it leaves, the modules that are told)
CLASSES = {
    "Model": ({}, []),
    "ForSequenceClassification": (MLP | {"layer_weights": (3,)}, ["classifier", "layer_weights", "projector"]),
    "ForAudioFrameClassification": ({"classifier.weight": (4, WIDTH), "classifier.bias": (4,)}, ["classifier"]),
    "ForXVector": (
        MLP | {"tdnn.0.kernel.weight": (8, 40), "feature_extractor.weight": (8, 16), "objective.weight": (8, 4)},
        ["classifier", "feature_extractor", "objective", "projector", "tdnn"],
    ),
    "ModelWithFinalProj": ({"final_proj.weight": (5, WIDTH), "final_proj.bias": (5,)}, ["final_proj"]),
    "ForSpeechClassification": (
        {"classifier.dense.weight": (WIDTH, WIDTH), "classifier.out_proj.bias": (3,)},
        ["classifier"],
    ),
}
# (what stands before a backbone's name, what stands before a head's); FAMILY is the family's own name
PREFIXES = [
    ("", ""),
    ("FAMILY.", ""),
    ("module.FAMILY.", "module."),
    ("_orig_mod.FAMILY.", "_orig_mod."),
    ("module._orig_mod.FAMILY.", "module._orig_mod."),
    ("FAMILY._orig_mod.", ""),
    ("model.", ""),
    ("model.FAMILY.", "model."),
    ("ssl.upstream.model.", "downstream."),
]
TYPES = ["float32", "float16", "bfloat16"]


def released_backbone(family):
    """Its tensors by bare name, weight norm in the new spelling."""
    folder, prefix = FAMILIES[family]
    tensors = load_file(RELEASED / folder / "model.safetensors")
    return {name.removeprefix(prefix): x for name, x in tensors.items() if not name.startswith("lm_head")}


def heads(shapes):
    return {name: np.full(shape, 7, np.float32) for name, shape in shapes.items()}


def old_spelling(tensors):
    return {name.replace(G, ".weight_g").replace(V, ".weight_v"): x for name, x in tensors.items()}


def wrap(tensors, prefix, family):
    return {prefix.replace("FAMILY", family) + name: x for name, x in tensors.items()}


def assert_backbone(released, expected, dtype="float32"):
    """Bit for bit the plain folder's, through the type that they were stored in."""
    ours = flatten_dict(released.parameters()["backbone"], sep="/")
    theirs = flatten_dict(expected["backbone"], sep="/")
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert ours[name].dtype == np.float32
        np.testing.assert_array_equal(ours[name], np.asarray(x.astype(jnp.dtype(dtype)), np.float32), err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_of_any_class_prefix_and_type(family, tmp_path):
    check_all(family, ("one", "shards"), tmp_path)


@pytest.mark.transformers
@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_in_torchs_files(family, tmp_path):
    pytest.importorskip("torch")
    check_all(family, ("torch", "torch shards"), tmp_path)


def check_all(family, storages, folder):
    """Each class under each prefix; the types, the spellings of weight norm and the storages in turn."""
    source, backbone = FAMILIES[family][0], released_backbone(family)
    expected, spellings = open_released(str(RELEASED / source)).parameters(), [backbone, old_spelling(backbone)]
    for (i, kind), (k, (before, around)) in itertools.product(enumerate(CLASSES), enumerate(PREFIXES)):
        left, told = CLASSES[kind]
        dtype, storage = TYPES[(i + k) % 3], storages[(i // 2 + k // 3) % 2]
        tensors = wrap(spellings[(i + k) % 2], before, family) | wrap(heads(left), around, family)
        path = write(folder / f"{i}-{k}", tensors, source=source, architectures=[kind], storage=storage, dtype=dtype)
        released = open_released(str(path))
        assert_backbone(released, expected, dtype)
        if kind == "ForSequenceClassification" and around != "downstream.":  # whose head is one of ours
            assert released.left_behind == ["layer_weights"]  # the config sums no layers
            assert isinstance(released.architecture.head, ClassifierHeadConfig)
            continue
        assert released.left_behind == (told if around != "downstream." or not told else ["downstream"])
        assert released.architecture.head is None


def test_the_mask_embedding_by_its_old_name(tmp_path):
    def rename(tensors):
        tensors["wav2vec2.mask_time_emb_vector"] = tensors.pop("wav2vec2.masked_spec_embed")

    assert same_as_released(ctc_folder(tmp_path, rename), "wav2vec2_ctc").left_behind == []


@pytest.mark.parametrize("source", ["wav2vec2_ctc", "xlsr_ctc", "sew_ctc"])
def test_weight_norm_that_was_folded(source, tmp_path):
    """The same convolution, also where one of its taps is all zeros."""
    tensors = load_file(RELEASED / source / "model.safetensors")
    stem = next(name for name in tensors if name.endswith(G)).removesuffix(G)
    gains, directions = tensors[stem + G], tensors[stem + V]
    gains[..., 2] = 0
    whole = gains * directions / np.sqrt(np.square(directions).sum((0, 1), keepdims=True))

    def zero(tensors):
        tensors[stem + G] = gains

    def fold(tensors):
        del tensors[stem + G], tensors[stem + V]
        tensors[f"{stem}.weight"] = whole

    x, y = np.random.default_rng(0).normal(size=(2, 9, WIDTH)).astype(np.float32), []
    for change in (zero, fold):
        released = open_released(str(ctc_folder(tmp_path / change.__name__, change, source)))
        assert released.left_behind == []
        convolution = PositionalConv(released.architecture.backbone)
        params = {"params": released.parameters()["backbone"]["encoder"]["pos_conv"]}
        y.append(convolution.apply(params, x, released.architecture.squeeze))
    assert np.isfinite(y[1]).all()
    assert np.abs(y[1] - y[0]).max() <= 1e-6 * np.abs(y[0]).max()


def test_tensors_beyond_the_configuration_are_told(tmp_path):
    """As transformers does, the layers that config.json counts are taken of a deeper stack."""

    def deepen(tensors):
        for name, x in list(tensors.items()):
            if ".layers.1." in name:
                tensors[name.replace(".layers.1.", ".layers.2.")] = x

    assert same_as_released(ctc_folder(tmp_path, deepen), "wav2vec2_ctc").left_behind == ["encoder.layers.2"]


def test_of_two_backbones_the_one_of_the_classs_name(tmp_path):
    def double(tensors):
        tensors |= {name.replace("wav2vec2.", "a."): x + 1 for name, x in tensors.items() if "wav2vec2." in name}

    assert same_as_released(ctc_folder(tmp_path, double), "wav2vec2_ctc").left_behind == ["a"]
