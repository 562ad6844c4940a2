"""The way to divide an update that fits a slice by its compiler's word: estimates, corrected by what it says."""

from typing import NamedTuple

from ml_collections import ConfigDict

from sew_jax.compression import Draw, settings_table
from sew_jax.console import say
from sew_jax.machines import Slice
from sew_jax.models.config import REMAT, BackboneConfig, Remat
from sew_jax.models.cost import count_shared_macs
from sew_jax.tables import align_columns
from sew_jax.training.compiled_plan import Compiled, Way, compile_gradients
from sew_jax.training.task import draws_of

_GIB = 2**30
_FIRST_PART = 0.75  # of the estimates, which are from above, before the compiler has said anything
_REFUSED_PART = 1.5  # by which they grow where it gives no number


def at_once(free: float, need: tuple[float, float]) -> int:
    """Utterances that fit `free` bytes, by what each keeps and computes again."""
    return max(int(free // max(sum(need), 1)), 0)


class Estimates(NamedTuple):
    """Bytes of one device.

    Attributes:
      memory: of it.
      rows: utterances of an update.
      held: by fsdp, state and gradients.
      needs: by remat, what an utterance keeps for the backward pass, and what is computed again at once.
    """

    memory: float
    rows: int
    held: dict[int, int]
    needs: dict[Remat, tuple[int, int]]

    def best(self, part: float) -> Way | None:
        """What computes least again, then communicates least, then has fewest micro-batches, at `part` of the needs.

        None where nothing fits.
        """
        ways = []
        for fsdp, held in self.held.items():
            for remat, (kept, again) in self.needs.items():
                if most := at_once(self.memory - held, (part * kept, part * again)):
                    ways.append(Way(fsdp, remat, _micro_batches(self.rows, most)))
        return min(ways, key=lambda way: (REMAT.index(way.remat), way.fsdp, way.accumulate), default=None)

    def of(self, way: Way) -> float:
        """Bytes that a way needs beside state and gradients."""
        return sum(self.needs[way.remat]) * (self.rows / way.accumulate)


def _micro_batches(rows: int, most: int) -> int:
    """The fewest of equal size that hold at most so many utterances."""
    return next(count for count in range(-(-rows // most), rows + 1) if rows % count == 0)


def compiled_way(
    config: ConfigDict, backbone: BackboneConfig, where: Slice, estimates: Estimates, samples: int
) -> Way | None:
    """The first way whose largest program fits a slice, with a table of what the compiler said; None: none does.

    Args:
      config: of mode `plan`.
      samples: of an utterance.
    """
    pretrain = config.pretrain
    draws = draws_of(pretrain, settings_table(**pretrain.compression), backbone)

    def macs(draw: Draw) -> int:
        return count_shared_macs(backbone, (draw.setting, *draw.others), samples)

    largest, *others = ordered = sorted(draws, key=macs, reverse=True)
    three = [largest, ordered[(len(ordered) - 1) // 2], ordered[-1]]
    say(f"\ncompiling for {where.topology}; the longest crops at {largest}:")
    part, rows = _FIRST_PART, []
    while way := estimates.best(part):
        said = _compile(pretrain, backbone, where, way, largest, estimates, samples)
        rows.append(_row(way, largest, said, estimates))
        if said.needs is not None and said.needs <= estimates.memory:
            break
        seen = 0.0 if said.needs is None else (said.needs - estimates.held[way.fsdp]) / estimates.of(way)
        part = max(part * 1.01, seen or part * _REFUSED_PART)  # so that another way comes next
        while estimates.best(part) == way:
            part *= 1.01
    for draw in others if way and config.programs != "largest" else ():
        if draw in three or config.programs == "all":
            said = _compile(pretrain, backbone, where, way, draw, estimates, samples)
            rows.append(_row(way, draw, said, estimates))
    say(align_columns(_HEAD, rows))
    say("    (of one device; FLOP and bytes count one micro-batch, and one head of attention, of all that loop)")
    return way


def _compile(pretrain, backbone, where, way, draw, estimates: Estimates, samples: int) -> Compiled:
    said = compile_gradients(pretrain, backbone, where, way, draw, estimates.rows, samples)
    say(f"  {' '.join(map(str, way))} {draw}: {said.cpu_seconds:.0f} s of this machine's processors")
    return said


_HEAD = (
    "fsdp",
    "remat",
    "accumulate",
    "program",
    "GiB",
    "of them work space",
    "estimated GiB",
    "TFLOP",
    "GB accessed",
    "collectives",
    "CPU seconds",
)


def _row(way: Way, draw: Draw, said: Compiled, estimates: Estimates) -> tuple[str, ...]:
    estimated = (estimates.held[way.fsdp] + estimates.of(way)) / _GIB
    gib = ("too large", "-") if said.needs is None else (f"{said.needs / _GIB:.2f}", f"{said.work / _GIB:.2f}")
    collectives = ", ".join(f"{count} {name}" for name, count in sorted(said.collectives.items())) or "-"
    return (
        str(way.fsdp),
        way.remat,
        str(way.accumulate),
        str(draw),
        *gib,
        f"{estimated:.2f}",
        f"{said.flop / 1e12:.3g}",
        f"{said.accessed / 1e9:.4g}",
        collectives,
        f"{said.cpu_seconds:.0f}",
    )
