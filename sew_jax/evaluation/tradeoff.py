"""The trade-off between errors and time: a point for each setting, decoder and split."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from sew_jax.buckets import as_path
from sew_jax.engines.run_times import Engine
from sew_jax.errors import UserError
from sew_jax.metrics.measure import ACCURACY, WER, Measure
from sew_jax.models.config import INT8

MOST_MOVED = 0.001  # by 8 bits, of WER or accuracy, absolute


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting. Rates are fractions; seconds are of the whole evaluated set, the median over repeats.

    Of a classifier each label counts as a text of one word, so that `wer` is 1 - `accuracy`.
    """

    setting: str
    split: str  # empty: all of the data
    decoder: str  # greedy, or what else has made text of symbols
    wer: float
    wer_low: float  # 95 % interval, from resampling utterances
    wer_high: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    utterances: int
    seconds: float
    seconds_min: float
    seconds_max: float
    repeats: int
    decode_seconds: float  # of beam search, which is part of `seconds`; 0 for greedy decoding
    lm_weight: float | None  # of beam search
    word_score: float | None
    audio_seconds: float
    rtf: float  # seconds over audio_seconds
    relative_time: float  # to s1q1k1 and greedy decoding by the first run time
    macs_per_s: float  # multiply-accumulates for one second of audio
    relative_macs: float  # to s1q1k1
    device: str
    dtype: str
    trained: bool  # whether the setting was in the table of the last training
    empty_references: int = 0  # utterances in which nothing was said, so that all that is written is inserted
    on_front: bool = False  # no other point of its split is both faster and better
    runtime: str = "jax"  # what computed it, in `dtype`
    accuracy: float | None = None  # of labels, as all below; None: texts were counted
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    macro_f1: float | None = None
    macro_f1_low: float | None = None
    macro_f1_high: float | None = None

    @property
    def engine(self) -> Engine:
        """Run time and precision."""
        return Engine(self.runtime, self.dtype)

    @property
    def measure(self) -> Measure:
        """What it is compared by."""
        return WER if self.accuracy is None else ACCURACY


_KEYS = {"substitutions": "sub", "deletions": "del", "insertions": "ins"}  # field -> key in files


class Made(Protocol):
    """What was decoded in some way."""

    @property
    def decoder(self) -> str: ...
    @property
    def engine(self) -> Engine: ...


def ways(points: Sequence[Made]) -> list[str]:
    """How each was made but for its setting: the decoder, and where they differ in it also the run time."""
    several = len({point.engine for point in points}) > 1
    return [f"{point.decoder}, {point.engine}" if several else point.decoder for point in points]


def mark_front(points: Sequence[Point]) -> list[Point]:
    """Points with `on_front` set for those that no other one beats in time or WER without losing in the other.

    Points that no budget picks neither beat others nor stand there.
    """
    offered = [point for point in points if not why_withheld(point, points)]

    def beaten(point: Point) -> bool:
        return any(
            other.split == point.split
            and other.seconds <= point.seconds
            and other.wer <= point.wer
            and (other.seconds < point.seconds or other.wer < point.wer)
            for other in offered
        )

    return [dataclasses.replace(point, on_front=point in offered and not beaten(point)) for point in points]


def why_withheld(point: Point, points: Sequence[Point]) -> str:
    """Why no budget picks a point of a table in 8 bits: what it says must be what the same setting says in floats.

    Empty where one may. Compared by the same run time where that has computed in floats, else by all others.
    """
    if point.dtype != INT8:
        return ""
    same = (point.split, point.setting, point.decoder)
    floats = [p for p in points if (p.split, p.setting, p.decoder) == same and p.dtype != INT8]
    floats = [p for p in floats if p.runtime == point.runtime] or floats
    if not floats:
        return "int8 without floats beside it"
    moved = max(abs(point.wer - p.wer) for p in floats)
    return f"int8 moves {point.measure.name} by {100 * moved:.2f}" if moved > MOST_MOVED + 1e-9 else ""


def to_objects(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Points as files hold them; without what is said of labels alone where there are none."""
    return [
        {
            _KEYS.get(k, k): v
            for k, v in dataclasses.asdict(point).items()
            if point.measure is ACCURACY or not k.startswith(("accuracy", "macro_f1"))
        }
        for point in points
    ]


def read_tradeoff(where: Path | str) -> list[Point]:
    """The points that an evaluation left.

    Args:
      where: its workdir, or the tradeoff.json in it.

    Raises:
      UserError: there are none, or the file is something else.
    """
    path = as_path(where) if Path(where).name == "tradeoff.json" else as_path(where) / "tradeoff.json"
    fields = {key: field for field, key in _KEYS.items()}
    try:
        objects = json.loads(path.read_text(encoding="utf-8"))
        return [Point(**{fields.get(k, k): v for k, v in one.items()}) for one in objects]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} does not exist; run configs/evaluate.py first") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a trade-off table ({error}); run configs/evaluate.py again") from error
