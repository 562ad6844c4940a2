"""Names, tables and draws of compression settings."""

import numpy as np
import pytest

from sew_jax.compression import Compression, draw, parse_table, product_table
from sew_jax.errors import UserError


@pytest.mark.parametrize(
    "name",
    [
        "s1q1k1",
        "s2q1k2",
        "s4q2k2",
        "s1q1.2.2k1",
        "s3q1.2k2.1",
        "s1q1k1m0.2",
        "s2q1.2k1m0-0.25",
        "r0.4q1k1",
        "r0.375q2k1m0.2",
    ],
)
def test_a_name_names_its_setting(name):
    assert Compression.parse(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "s1",
        "q1k1",
        "s1q1k1x",
        "s-1q1k1",
        "s1q1.k1",
        "base",
        "s1q1k1m",
        "s1q1k1m2",
        "s1q1k1m0.2.0",
        "r2q1k1",
        "s2r0.4q1k1",
    ],
)
def test_an_unknown_name_is_a_clear_error(name):
    with pytest.raises(UserError, match=r"setting .* is unknown; write"):
        Compression.parse(name)


@pytest.mark.parametrize(
    "factors", [(0, 1, 1), (1, 0, 1), (1, 1, -2), (1, (1, 0), 1), (1.5, 1, 1), (True, 1, 1), ((1, 2), 1, 1), (1, (), 1)]
)
def test_what_is_no_factor_is_refused(factors):
    with pytest.raises(UserError, match="is not a factor"):
        Compression(*factors)


def test_a_per_layer_setting_of_equal_factors_is_the_uniform_setting():
    assert Compression(2, (1, 1, 1), (2, 2, 2)) == Compression(2, 1, 2)
    assert hash(Compression(2, (1, 1, 1), 2)) == hash(Compression(2, 1, 2))


@pytest.mark.parametrize("share", [-0.1, 0.51, 0.1234, True, "0.2", (0.2, 0.6), ()])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(UserError, match="is not a share"):
        Compression(1, 1, 1, share)


@pytest.mark.parametrize(("squeeze", "rate"), [(1, 0), (1, 1.2), (2, 0.5), (1, 0.1234), (1, True), (1, "0.5")])
def test_what_is_no_rate_is_refused(squeeze, rate):
    with pytest.raises(UserError, match="is not a share of the frames"):
        Compression(squeeze, rate=rate)


def test_settings_that_merge_nothing_are_those_without():
    assert Compression.parse("s1q1k1m0-0.0") == Compression() and Compression(2, 1, 1, 0) == Compression(2)
    assert hash(Compression(1, 1, 1, (0.2, 0.2))) == hash(Compression.parse("s1q1k1m.20"))
    assert not Compression().merges and Compression.parse("s1q1k1m0-0.001").merges


def test_layer_merges_spread_and_check():
    setting = Compression.parse("s1q1k1m0-0.25")
    assert setting.layer_merges(2) == [0, 0.25] and Compression(1, 1, 1, 0.1).layer_merges(3) == [0.1] * 3
    for of_layers in (setting.layer_merges, setting.layer_pools):
        with pytest.raises(UserError, match="merge has 2 shares, but the model has 4 layers"):
            of_layers(4)


def test_layer_pools_spread_and_check():
    assert Compression(1, 2, (1, 2, 4)).layer_pools(3) == [(2, 1), (2, 2), (2, 4)]
    with pytest.raises(UserError, match="kv_pool has 3 factors, but the model has 4 layers"):
        Compression(1, 2, (1, 2, 4)).layer_pools(4)


def test_tables():
    table = product_table((1, 2), (1, 2), (1,))
    assert [s.name for s in table] == ["s1q1k1", "s1q2k1", "s2q1k1", "s2q2k1"]
    assert product_table((1, 1), (1,), (1,)) == [Compression()]
    assert parse_table("s1q1k1, s2q1k2,s1q1k1") == [Compression(), Compression(2, 1, 2)]
    with pytest.raises(UserError, match="empty set"):
        product_table((), (1,), (1,))
    with pytest.raises(UserError, match="no names"):
        parse_table(" ")


def test_draws_are_uniform_and_depend_on_seed_and_step_alone():
    table = product_table((1, 2, 3, 4), (1, 2), (1,))
    draws = [draw(table, 5, step) for step in range(16_000)]
    assert draws[:50] == [draw(table, 5, step) for step in range(50)] != [draw(table, 6, step) for step in range(50)]
    counts = np.array([draws.count(setting) for setting in table])
    assert ((counts - 2000) ** 2 / 2000).sum() < 24.3  # chi-square, 7 degrees of freedom, 0.1 %
