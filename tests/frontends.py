"""Front ends side by side: MACs, times that take turns, and commands for accuracies. Run by hand, not by pytest.

python -m tests.frontends macs                  # of a second of audio at each size's widths, and their shares
python -m tests.frontends alone 8 9             # SECONDS ROUNDS: front ends without a transformer
python -m tests.frontends inference base 8 9    # SIZE SECONDS ROUNDS: of a whole model at s1q1k1 and s2q1k1
python -m tests.frontends update demo 8 9       # its updates
python -m tests.frontends commands DATA | sh    # pre-training of the small model; accuracies are in held_out.jsonl
"""

import dataclasses
import functools
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
    print("size       front end  MMAC/s with projection all, s1q1k1  share  s2q1k1")
    for size in ("demo", "sew_tiny", "base"):
        for name in FRONTENDS:
            one, two = (count_macs(backbone_of(size, name), Compression(s), round(16_000 * SECONDS)) for s in (1, 2))
            unit = SECONDS * 1e6
            front = one.extractor + one.feature_projection
            print(
                f"{size:10} {name:9} {one.extractor / unit:7.0f} {front / unit:15.0f} {one.total / unit:11.0f} "
                f"{front / one.total:6.0%} {two.total / unit:7.0f}"
            )


def programs_alone(name, seconds):
    """Name -> what is timed of a front end without a transformer, compiled."""
    module, samples = Frontend(backbone_of("base", name)), round(16_000 * seconds)
    wave, length = jax.random.normal(jax.random.key(0), (1, samples)), jnp.array([samples])
    params = jax.jit(module.init)(jax.random.key(1), wave, length)

    def loss(params, wave):
        return jnp.square(module.apply(params, wave, length)[0]).sum()

    forward = jax.jit(lambda params, wave: module.apply(params, wave, length)[0])
    made = {"forward": forward, "with gradients": jax.jit(jax.grad(loss)) if params else forward}
    return {case: lambda run=run: jax.block_until_ready(run(params, wave)) for case, run in made.items()}


def programs_of_model(size, name, seconds, what):
    """Name -> what is timed of a whole model, compiled."""
    backbone, samples = backbone_of(size, name), round(16_000 * seconds)
    table = [Compression(), Compression(2)]
    if what == "update":
        recipe = pretrain.get_config("base")
        recipe.mask.span = 5 if name == "fbank25" else 10
        return ours.training(backbone, published(size)[1], recipe, table, 1, samples, 1.0).cases
    return ours.inference(backbone, table, 1, samples, 1.0).cases


def print_times(rounds, make):
    """Medians of processors' and of passed time, and of ratios to wav2vec2's turns."""
    made = {(name, case): run for name in FRONTENDS for case, run in make(name).items()}
    took = {key: [] for key in made}
    for turn in range(rounds + 1):
        for key, run in made.items():
            begin = time.process_time(), time.perf_counter()
            run()
            if turn:
                took[key].append((time.process_time() - begin[0], time.perf_counter() - begin[1]))
    for (name, case), times in took.items():
        cells = []
        for kind, which in (("processor", 0), ("passed", 1)):
            ratio = statistics.median(t[which] / r[which] for t, r in zip(times, took["wav2vec2", case], strict=True))
            cells.append(f"{kind} {1000 * statistics.median(t[which] for t in times):.0f} ms ({ratio:.3f})")
        print(f"{name:9} {case:15} {', '.join(cells)}", flush=True)


def print_commands(data):
    """Pre-training of the small model with each front end, for its accuracy after as many updates."""
    options = {"fbank25": " --config.mask.span=5", "scf": " --config.model.normalize_wave=True"}
    options["compact"] = " --config.model.conv_width=16"
    for name in ("compact", "scf", "logmel", "fbank50", "fbank25"):
        print(
            f"python -m sew_jax.main --config=configs/pretrain.py:demo,fixed --config.data={data} --config.split=train "
            f"--config.num_steps=1000 --config.eval.every=500 --config.model.frontend={name} --workdir=runs/{name}"
            f"{options.get(name, '')}"
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["macs"]:
            print_macs()
        case ["alone", seconds, rounds]:
            print_times(int(rounds), functools.partial(programs_alone, seconds=float(seconds)))
        case [("inference" | "update") as what, size, seconds, rounds]:
            make = functools.partial(programs_of_model, size, seconds=float(seconds), what=what)
            print_times(int(rounds), make)
        case ["commands", data]:
            print_commands(data)
        case _:
            sys.exit(__doc__)
