"""What modules are drawn from, by moments, against fairseq's and SEW's code (torch's tails are not cut off)."""

import math

import jax
import numpy as np
import pytest

from sew_jax.models.config import BackboneConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.models.parameters import path_name
from sew_jax.models.pretrain import PretrainModel

C, D, FFN, TAPS, FINAL, MLP = 64, 128, 256, 9, 48, 512
GROUPED = dict(conv_width=C, width=D, layers=2, heads=4, ffn_width=FFN, pos_kernel=TAPS, pos_groups=4)
LAYERED = GROUPED | dict(conv_norm="layer", conv_bias=True, pre_norm=True, adapter_width=8)
HEAD = PretrainHeadConfig(codes=40, code_width=96, final_width=FINAL)


def drawn(model):
    params = jax.jit(model.initialize)(jax.random.key(3))["params"]
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(params)}


@pytest.fixture(scope="module")
def trees():
    head = PretrainHeadConfig(codes=40, code_width=96, final_width=FINAL, projection="mlp", mlp_width=MLP)
    backbone = BackboneConfig(**GROUPED, upsampler="linear", upsample_factors=(2, 3))
    return {
        "linear": drawn(PretrainModel(BackboneConfig(**LAYERED, upsample_factors=(2,)), HEAD)),
        "mlp": drawn(PretrainModel(backbone, head)),
        "ctc": drawn(CTCModel(backbone, CTCHeadConfig(symbols=200))),
    }


EXTRACTOR, LAYER = "backbone/frontend/extractor", "backbone/encoder/layer_1"
NORMAL = {  # standard deviations
    ("linear", f"{EXTRACTOR}/conv_1/kernel"): math.sqrt(2 / (3 * C)),  # kaiming_normal_
    ("mlp", f"{EXTRACTOR}/conv_6/kernel"): math.sqrt(2 / (2 * C)),
    ("linear", "backbone/encoder/pos_conv/weight_v"): math.sqrt(4 / (TAPS * D)),
    ("linear", f"{LAYER}/attention/query/kernel"): 0.02,  # init_bert_params
    ("linear", f"{LAYER}/attention/out/kernel"): 0.02,
    ("linear", f"{LAYER}/ffn_in/kernel"): 0.02,
    ("linear", f"{LAYER}/ffn_out/kernel"): 0.02,
    ("mlp", "backbone/encoder/upsample_2/linear/kernel"): math.sqrt(2 / (2 * D)),  # kaiming_normal_, fan_out
    ("ctc", "backbone/encoder/upsample_3/linear/kernel"): math.sqrt(2 / (3 * D)),
    ("mlp", "quantizer/logits/kernel"): 1.0,
    ("mlp", "project_prediction/hidden/kernel"): math.sqrt(2 / (D + MLP)),  # xavier_normal_
    ("mlp", "project_target/out/kernel"): math.sqrt(2 / (MLP + FINAL)),
}
UNIFORM = {  # ends
    ("linear", f"{EXTRACTOR}/conv_0/bias"): (-1 / math.sqrt(10), 1 / math.sqrt(10)),  # nn.Conv1d's own
    ("linear", f"{EXTRACTOR}/conv_4/bias"): (-1 / math.sqrt(3 * C), 1 / math.sqrt(3 * C)),
    ("linear", "backbone/feature_projection/kernel"): (-1 / math.sqrt(C), 1 / math.sqrt(C)),  # nn.Linear's own
    ("linear", "backbone/feature_projection/bias"): (-1 / math.sqrt(C), 1 / math.sqrt(C)),
    ("linear", "project_prediction/kernel"): (-1 / math.sqrt(D), 1 / math.sqrt(D)),
    ("linear", "project_target/bias"): (-1 / math.sqrt(96), 1 / math.sqrt(96)),
    ("linear", "backbone/mask_embedding"): (0.0, 1.0),
    ("linear", "quantizer/codebook"): (0.0, 1.0),
    ("ctc", "symbols/kernel"): (-math.sqrt(6 / (D + 200)), math.sqrt(6 / (D + 200))),  # xavier_uniform_
}
ZERO = (
    "quantizer/logits/bias",
    "project_prediction/out/bias",
    "upsample_2/linear/bias",
    "upsample_2/difference/kernel",
    "pos_conv/bias",
    "adapter/up/kernel",
    "symbols/bias",
)


@pytest.mark.parametrize("which", NORMAL, ids="-".join)
def test_normal_with_its_tails(trees, which):
    x, std = trees[which[0]][which[1]].ravel(), NORMAL[which]
    assert abs(x.mean()) < 4 * std / math.sqrt(x.size)
    assert x.std() == pytest.approx(std, rel=4 / math.sqrt(2 * x.size))
    beyond = (np.abs(x) > 2 * std).mean()  # of a truncated normal, whose bound is 2.27 of its deviations, 2.6 %
    assert beyond == pytest.approx(math.erfc(math.sqrt(2)), abs=4 * math.sqrt(0.0455 / x.size))
    assert np.abs(x).max() > 2.6 * std


@pytest.mark.parametrize("which", UNIFORM, ids="-".join)
def test_uniform_between_its_ends(trees, which):
    x, (low, high) = trees[which[0]][which[1]].ravel(), UNIFORM[which]
    assert low <= x.min() < low + 8 * (high - low) / x.size
    assert high - 8 * (high - low) / x.size < x.max() <= high
    assert x.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / math.sqrt(12 * x.size))


@pytest.mark.parametrize("name", ZERO)
def test_zero(trees, name):
    found = [x for tree in trees.values() for path, x in tree.items() if path.endswith(name)]
    assert found and not any(x.any() for x in found)


def test_norms_begin_as_identities(trees):
    for path, x in trees["linear"].items():
        if "norm" in path:
            np.testing.assert_array_equal(x, np.ones_like(x) if path.endswith("scale") else np.zeros_like(x))


def test_the_positional_kernel_begins_as_it_is_drawn(trees):
    v_KxIxO, gain_K = (trees["linear"][f"backbone/encoder/pos_conv/weight_{part}"] for part in "vg")
    np.testing.assert_allclose(gain_K, np.sqrt(np.square(v_KxIxO).sum((1, 2))), rtol=1e-6)
