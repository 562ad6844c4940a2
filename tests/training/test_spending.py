"""FLOP and energy in rows of metrics: what is between two rows is in the second."""

from types import SimpleNamespace

import pytest

from configs import pretrain
from sew_jax.compression import Compression, Draw
from sew_jax.models.config import CTCHeadConfig
from sew_jax.models.cost import count_macs, count_update_flop
from sew_jax.models.ctc import CTCModel
from sew_jax.models.pretrain import PretrainModel
from sew_jax.models.sizes import published
from sew_jax.training.spending import Spending, pretrain_flop
from sew_jax.training.teacher import original

BACKBONE, HEAD = published("demo")
CONFIG = pretrain.get_config("demo")
DRAWS = [Draw(Compression()), Draw(Compression(), (Compression(2), Compression(4)))]


def spending_of(model, teacher=None, frozen_until=None):
    return Spending(CONFIG, SimpleNamespace(model=model, teacher=teacher, frozen_until=frozen_until))


def test_rows_add_up_to_all_updates():
    spending = spending_of(PretrainModel(BACKBONE, HEAD))
    each = [pretrain_flop(BACKBONE, HEAD, draw, 64_000, CONFIG.mask) for draw in DRAWS]
    spending.add(1, DRAWS[0], 3, 64_000)
    spending.add(2, DRAWS[1], 2, 64_000)
    row = spending.spent()
    assert row["tflop"] == pytest.approx((3 * each[0] + 2 * each[1]) / 1e12) and row["joules"] > 0
    assert each[0] < each[1] < 3 * each[0]  # smaller settings, on one pass of the front end
    assert spending.spent()["tflop"] == 0


def test_fine_tuning_costs_no_contrast():
    model = CTCModel(BACKBONE, CTCHeadConfig())
    spending = spending_of(model)
    spending.add(1, DRAWS[0], 1, 64_000)
    alone = spending.spent()["tflop"]
    assert alone == pytest.approx(count_update_flop(BACKBONE, Compression(), 64_000) / 1e12)
    # a teacher's forward pass, but for the extractor, which is the run's own
    spending = spending_of(model, original("float32", Compression()))
    spending.add(1, DRAWS[0], 1, 64_000)
    cost = count_macs(BACKBONE, Compression(), 64_000)
    assert spending.spent()["tflop"] - alone == pytest.approx(2 * (cost.total - cost.extractor) / 1e12)


def test_while_the_backbone_is_frozen_nothing_goes_back_through_it():
    spending = spending_of(CTCModel(BACKBONE, CTCHeadConfig()), frozen_until=lambda path: 10)
    spending.add(10, DRAWS[0], 1, 64_000)
    assert spending.spent()["tflop"] == pytest.approx(2 * count_macs(BACKBONE, Compression(), 64_000).total / 1e12)
    spending.add(11, DRAWS[0], 1, 64_000)
    assert spending.spent()["tflop"] == pytest.approx(count_update_flop(BACKBONE, Compression(), 64_000) / 1e12)
