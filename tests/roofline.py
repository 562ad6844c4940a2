"""The least time of a pass on accelerators, by what each part computes and moves; prints the tables of docs/results.md.

  python -m tests.roofline

Of each part the longer of its FLOP at the chip's published peak and its bytes at the published bandwidth, one after the
other. Bytes are the least that a program moves which keeps what an operation gives in bfloat16, joins norms and
activations to the products before them, and holds attention's scores in the chip: each part reads its input and its
weights once and writes its output once. An update is three forward passes, and what the optimiser moves; layer-drop and
heads are left out, and frames are repeated up to 50 Hz.
"""

from typing import NamedTuple

from sew_jax.compression import Compression
from sew_jax.machines import Machine, machine_named
from sew_jax.models.config import BackboneConfig
from sew_jax.models.cost import count_macs
from sew_jax.models.frontend import conv_stack, feature_width
from sew_jax.models.lengths import conv_length, pooled_length
from sew_jax.models.sizes import published
from sew_jax.tables import align_columns

CHIPS = tuple(map(machine_named, ("v5e", "v5p", "v6e", "h100")))
SETTINGS = tuple(map(Compression.parse, ("s1q1k1", "s1q2k2", "s2q1k1", "s2q2k2", "s4q2k2")))
SIZES = ("base", "large", "sew_tiny", "sew_small", "sew_mid")
SECONDS, ROWS = 15.6, 6
BYTES = 2  # of a number in bfloat16
# Of a parameter: it, its gradient and two moments are read and written, and it is read once more to be cast
OPTIMIZER_BYTES = 4 * 9


class Part(NamedTuple):
    """Of one utterance, and the weights that all share."""

    name: str
    macs: float
    moved: float  # numbers of activations that are read or written
    weights: float


def parts(config: BackboneConfig, setting: Compression, samples: int) -> list[Part]:
    """Of a forward pass."""
    found, channels_in, length = [], 1, samples
    for i, (channels, kernel, stride) in enumerate(conv_stack(config)):
        frames = conv_length(length, kernel, stride)
        # the first one's norm over time, where there is one, needs all frames before it can write any
        passes = 3 if i == 0 and config.conv_norm == "group" else 1
        moved = length * channels_in + passes * frames * channels
        macs = frames * channels * channels_in * kernel
        found.append(Part("extractor", macs, moved, channels * channels_in * kernel))
        length, channels_in = frames, channels
    width, features, cost = config.width, feature_width(config), count_macs(config, setting, samples)
    if cost.feature_projection:
        found.append(Part("projection", cost.feature_projection, length * (features + width), features * width))
    windows = pooled_length(length, setting.squeeze)
    found.append(
        Part("pos_conv", cost.pos_conv, (length + windows) * width, config.pos_kernel * width**2 / config.pos_groups)
    )
    for query_pool, kv_pool in setting.layer_pools(config.layers):
        queries, keys = pooled_length(windows, query_pool), pooled_length(windows, kv_pool)
        inputs = windows + 2 * (queries + keys)
        found += [
            Part("q, k, v, o", 2 * (queries + keys) * width**2, (inputs + windows + queries) * width, 4 * width**2),
            Part("attention", 2 * queries * keys * width, 2 * (queries + keys) * width, 0),
            Part(
                "feed-forward",
                2 * windows * width * config.ffn_width,
                windows * (3 * width + 2 * config.ffn_width),
                2 * width * config.ffn_width,
            ),
        ]
    if cost.upsampler:
        found.append(Part("upsampler", cost.upsampler, (windows + length) * width, width**2 * setting.squeeze))
    return found


def least_seconds(chip: Machine, config: BackboneConfig, setting: Compression, update: bool) -> dict[str, float]:
    """Of each kind of part, for a batch; "memory" is the share of the whole that waits for memory."""
    assert chip.gb_per_second
    times, factor, waits = {}, 3 if update else 1, 0.0
    found = parts(config, setting, round(SECONDS * 16_000))
    for part in found:
        computing = 2 * part.macs * factor * ROWS / (chip.tflops * 1e12)
        moving = BYTES * factor * (part.moved * ROWS + part.weights) / (chip.gb_per_second * 1e9)
        times[part.name] = times.get(part.name, 0.0) + max(computing, moving)
        waits += moving if moving > computing else 0.0
    if update:
        times["optimizer"] = OPTIMIZER_BYTES * sum(part.weights for part in found) / (chip.gb_per_second * 1e9)
        waits += times["optimizer"]
    total = sum(times.values())
    return times | {"total": total, "memory": waits / total}


def main() -> None:
    for update in (False, True):
        what = "update" if update else "forward pass"
        print(f"\n{what} of {ROWS} x {SECONDS} s, bfloat16: least ms (part that waits for memory) speed-up")
        lines = []
        for size in SIZES:
            config = published(size)[0]
            first = count_macs(config, SETTINGS[0], round(SECONDS * 16_000)).total
            for setting in SETTINGS:
                cells = [size, str(setting)]
                cells.append(f"{first / count_macs(config, setting, round(SECONDS * 16_000)).total:.2f}")
                for chip in CHIPS:
                    whole, own = (least_seconds(chip, config, s, update) for s in (SETTINGS[0], setting))
                    cells.append(f"{1e3 * own['total']:.2f} ({own['memory']:.0%}) {whole['total'] / own['total']:.2f}")
                lines.append(tuple(cells))
        print(align_columns(("size", "setting", "by MACs", *(chip.name for chip in CHIPS)), lines))
    print("\nbase at s1q1k1 and s4q2k2, share of each part of the least time of a forward pass:")
    for chip in CHIPS:
        for setting in (SETTINGS[0], SETTINGS[-1]):
            times = least_seconds(chip, published("base")[0], setting, update=False)
            total, _ = times.pop("total"), times.pop("memory")
            print(f"  {chip.name} {setting}: " + ", ".join(f"{name} {t / total:.0%}" for name, t in times.items()))


if __name__ == "__main__":
    main()
