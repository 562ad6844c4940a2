"""Losses against plain numpy and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sew_jax.models.platforms import compiled_for
from sew_jax.training import losses

B, M, N, F, G, V = 3, 6, 5, 8, 2, 4
VALID = np.array([6, 4, 1])


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    return dict(
        prediction=random.normal(size=(B, M, F)).astype(np.float32),
        target=random.normal(size=(B, M, F)).astype(np.float32),
        codes=random.integers(0, 2, size=(B, M, G)),  # few codes, so that equal codewords occur
        valid=np.arange(M) < VALID[:, None],
        negatives=other_slots(random),
    )


def other_slots(random):
    """Any valid slot but one's own; what stands in rows without another one must not matter."""
    drawn = random.integers(0, np.maximum(VALID - 1, 1)[:, None, None], size=(B, M, N))
    return drawn + (drawn >= np.arange(M)[:, None])


def contrastive(case):
    prediction, target, codes, valid, negatives = map(jnp.asarray, case.values())
    return losses.contrastive(losses.contrastive_logits(prediction, target, codes, negatives, 0.1), valid)


def contrastive_oracle(prediction, target, codes, valid, negatives, temperature):
    def cosine(a, b):
        return float(a @ b / max(np.linalg.norm(a), 1e-8) / max(np.linalg.norm(b), 1e-8))

    total = weight = correct = 0.0
    for b in range(B):
        if valid[b].sum() < 2:
            continue
        for i in np.flatnonzero(valid[b]):
            positive = cosine(prediction[b, i], target[b, i]) / temperature
            others = [
                cosine(prediction[b, i], target[b, j]) / temperature
                for j in negatives[b, i]
                if not (codes[b, i] == codes[b, j]).all()
            ]
            total += np.log(sum(np.exp(x) for x in [positive, *others])) - positive
            correct += all(positive > x for x in others)
            weight += 1
    return total, weight, correct


def test_contrastive_equals_a_loop(case):
    loss, accuracy = contrastive(case)
    total, weight, correct = contrastive_oracle(*case.values(), 0.1)
    assert float(loss.sum) == pytest.approx(total, rel=1e-5)
    assert (float(loss.weight), float(accuracy.weight)) == (weight, weight)
    assert float(accuracy.sum) == correct


def test_slots_without_a_frame_change_nothing(case):
    before, _ = contrastive(case)
    case["prediction"][1, 4:] = case["target"][1, 4:] = 1e3
    after, _ = contrastive(case)
    assert float(before.sum) == pytest.approx(float(after.sum), rel=1e-6)


def test_a_constant_output_is_at_chance_and_never_counts_as_right(case):
    case["prediction"][:] = 1.0
    case["target"][:] = 2.0
    case["codes"] = np.arange(B * M * G).reshape(B, M, G)  # all different
    loss, accuracy = contrastive(case)
    assert float(loss.mean) == pytest.approx(np.log(1 + N), rel=1e-5)
    assert float(accuracy.sum) == 0


def test_gradients_flow_into_negatives_and_stay_finite_at_zero(case):
    case["prediction"][0, 0] = 0.0

    def loss(target):
        values = case | {"target": target}
        return contrastive(values)[0].sum

    gradient = np.asarray(jax.grad(loss)(jnp.asarray(case["target"])))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient[1, :4]).sum(-1) > 0).all() and (gradient[1, 4:] == 0).all()


def test_diversity_and_perplexity_equal_a_loop():
    random = np.random.default_rng(1)
    probs = random.dirichlet(np.ones(V), size=(B, M, G)).astype(np.float32)
    valid = np.arange(M) < VALID[:, None]
    mean = probs[valid].mean(0)
    expected = sum(np.exp(-sum(p * np.log(p) for p in group)) for group in mean)
    got = losses.mean_probabilities(jnp.asarray(probs), jnp.asarray(valid))
    np.testing.assert_allclose(got, mean, rtol=1e-5)
    assert float(losses.perplexity(got)) == pytest.approx(expected, rel=1e-4)
    term = losses.diversity(jnp.asarray(probs), jnp.asarray(valid), 11.0)
    assert float(term.sum) == pytest.approx(11 * (G * V - expected) / (G * V), rel=1e-4)


def test_perplexity_lies_between_collapse_and_uniform():
    assert float(losses.perplexity(jnp.full((G, V), 1 / V))) == pytest.approx(G * V, rel=1e-4)
    assert float(losses.perplexity(jnp.eye(V)[:G])) == pytest.approx(G, rel=1e-4)


def ctc_brute_force(log_probs, labels):
    """-log of the summed probability of all paths that collapse to `labels`."""
    frames, symbols = log_probs.shape
    total = 0.0
    for path in itertools.product(range(symbols), repeat=frames):
        collapsed = [s for s, _ in itertools.groupby(path) if s != 0]
        if collapsed == list(labels):
            total += np.exp(sum(log_probs[t, s] for t, s in enumerate(path)))
    return -np.log(total)


def test_ctc_equals_the_sum_over_all_alignments():
    random = np.random.default_rng(2)
    frames = 6
    cases = [([1, 2], 6), ([1, 1], 5), ([2, 1, 2], 4), ([3], 1), ([], 3), ([1, 1], 2), ([1, 2, 3], 2)]
    logits = random.normal(size=(len(cases), frames, 4)).astype(np.float32)
    labels = np.zeros((len(cases), 3), np.int32)
    for i, (text, _) in enumerate(cases):
        labels[i, : len(text)] = text
    label_length, length = (np.array(x) for x in ([len(t) for t, _ in cases], [n for _, n in cases]))

    ctc = jax.jit(losses.ctc)

    def each(i):
        row = slice(i, i + 1)
        return ctc(logits[row], length[row], labels[row], label_length[row], np.ones(1, bool))

    log_probs = np.asarray(jax.nn.log_softmax(logits))
    for i, (text, n) in enumerate(cases):
        loss, impossible = each(i)
        if i < 5:
            assert float(loss.sum) == pytest.approx(ctc_brute_force(log_probs[i, :n], text), rel=1e-4), (text, n)
            assert float(impossible.sum) == 0
        else:  # two equal symbols need a blank between them; three symbols do not fit two frames
            assert float(loss.sum) == 0 and float(impossible.sum) == 1

    weights = np.array([1, 1, 1, 1, 1, 1, 0], bool)
    loss, impossible = losses.ctc(logits, length, labels, label_length, weights)
    assert float(loss.sum) == pytest.approx(sum(float(each(i)[0].sum) for i in range(6)), rel=1e-5)
    assert (float(loss.weight), float(impossible.sum)) == (6, 1)


def test_ctc_gradients_are_finite_where_the_pair_is_impossible():
    def loss(logits):
        return losses.ctc(logits, jnp.array([2, 0]), jnp.array([[1, 1, 2]] * 2), jnp.array([3, 3]), jnp.ones(2, bool))[
            0
        ].sum

    assert (np.asarray(jax.jit(jax.grad(loss))(jnp.ones((2, 4, 3)))) == 0).all()


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_gradient_of_negatives_drawn_several_times_is_the_sum_of_theirs(platform):
    """On CPUs and on accelerators, which have ways of their own."""
    random = np.random.default_rng(3)
    index, weight = random.integers(4, size=(2, 3, 9)), random.normal(size=(2, 3, 9)).astype(np.float32)
    x = random.normal(size=(2, 3, 4)).astype(np.float32)

    def weighted(x):
        return (losses._take_along_rows(x, jnp.asarray(index)) * weight).sum()

    expected = np.zeros_like(x)
    for place in np.ndindex(*index.shape):
        expected[(*place[:2], index[place])] += weight[place]
    with compiled_for(platform):
        np.testing.assert_allclose(jax.grad(weighted)(x), expected, rtol=1e-5, atol=1e-6)


def test_gradient_of_negatives_is_no_scatter_on_gpus():
    """Threads of a GPU add to one place in any order, so that no two runs would be alike."""
    shapes = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32), jax.ShapeDtypeStruct((2, 3, 9), jnp.int32)
    gradient = jax.jit(jax.grad(lambda x, index: losses._take_along_rows(x, index).sum()))
    with compiled_for(None):
        scatters = {
            platform: "stablehlo.scatter" in jax.export.export(gradient, platforms=[platform])(*shapes).mlir_module()
            for platform in ("cpu", "cuda", "tpu")
        }
    assert scatters == {"cpu": True, "cuda": False, "tpu": False}
