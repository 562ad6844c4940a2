"""Front ends side by side: MACs, and times that take turns. Run by hand, not by pytest.

python -m tests.frontends macs                  # of a second of audio at each size's widths, and their shares
python -m tests.frontends times base 5 5 infer  # SIZE SECONDS ROUNDS infer | update
"""

import dataclasses
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from configs import pretrain
from sew_jax.benchmarks import ours
from sew_jax.compression import Compression
from sew_jax.models.cost import count_macs
from sew_jax.models.frontend import Frontend
from sew_jax.models.sizes import published

FRONTENDS = {
    "wav2vec2": dict(frontend="wav2vec2", conv_width=512),
    "compact": dict(frontend="compact", conv_width=64),
    "scf": dict(frontend="scf", normalize_wave=True),
    "logmel": dict(frontend="logmel"),
    "fbank50": dict(frontend="fbank50"),
    "fbank25": dict(frontend="fbank25"),
}
SECONDS = 15.6


def backbone_of(size, name):
    return dataclasses.replace(published(size)[0], upsample_factors=(2,), **FRONTENDS[name])


def print_macs():
    print(
        f"{'size':10} {'front end':9} {'MMAC/s':>7} {'with projection':>15} {'all, s1q1k1':>11} {'share':>6} {'s2q1k1':>7}"
    )
    for size in ("demo", "sew_tiny", "base"):
        for name in FRONTENDS:
            one, two = (count_macs(backbone_of(size, name), Compression(s), round(16_000 * SECONDS)) for s in (1, 2))
            unit = SECONDS * 1e6
            front = one.extractor + one.feature_projection
            print(
                f"{size:10} {name:9} {one.extractor / unit:7.0f} {front / unit:15.0f} {one.total / unit:11.0f} "
                f"{front / one.total:6.0%} {two.total / unit:7.0f}"
            )


def cases(size, name, seconds, what):
    """Name -> what is timed, compiled."""
    backbone, samples = backbone_of(size, name), round(16_000 * seconds)
    made = {}
    if what == "update":
        table, recipe = [Compression(), Compression(2)], pretrain.get_config("base")
        if name == "fbank25":
            recipe.mask.span = 5
        made |= ours.training(backbone, published(size)[1], recipe, table, 1, samples, 1.0).cases
    else:
        made |= ours.inference(backbone, [Compression(), Compression(2)], 1, samples, 1.0).cases
    wave, length = jnp.zeros((1, samples)), jnp.array([samples])
    params = jax.jit(Frontend(backbone).init)(jax.random.key(0), wave, length)
    alone = jax.jit(Frontend(backbone).apply)
    made["front end"] = lambda: jax.block_until_ready(alone(params, wave, length))
    return made


def print_times(size, seconds, rounds, what):
    every = {name: cases(size, name, seconds, what) for name in FRONTENDS}
    took = {(name, case): [] for name, made in every.items() for case in made}
    for turn in range(rounds + 1):
        for name, made in every.items():
            for case, run in made.items():
                begin = time.perf_counter()
                run()
                if turn:
                    took[name, case].append(time.perf_counter() - begin)
    print(
        f"{what} of {size}, 1 x {seconds:g} s, {rounds} rounds; ms (median), and to wav2vec2's at s1q1k1 (ratios' median)"
    )
    for name, made in every.items():
        cells = []
        for case in made:
            reference = took["wav2vec2", "s1q1k1"]
            ratio = statistics.median(a / b for a, b in zip(took[name, case], reference, strict=True))
            cells.append(f"{case} {1000 * statistics.median(took[name, case]):.0f} ({ratio:.2f})")
        print(f"{name:9} " + "  ".join(cells), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["times"]:
        print_times(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        print_macs()
