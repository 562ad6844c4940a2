"""What the points of a trade-off are compared by: an error rate, or the share that is right."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """A name of what is counted. Code counts errors, of which fewer are better; people read what the name says."""

    name: str  # within a sentence
    title: str
    is_error: bool

    def of(self, error: float) -> float:
        """What an error rate is by this measure."""
        return error if self.is_error else 1 - error

    def interval(self, low: float, high: float) -> tuple[float, float]:
        """What an interval of error rates is, the lower end first."""
        return (low, high) if self.is_error else (1 - high, 1 - low)


WER = Measure("WER", "word error rate", is_error=True)
ACCURACY = Measure("accuracy", "accuracy", is_error=False)


def measure_of(row: Mapping[str, Any]) -> Measure:
    """What a held-out row of fine-tuning is compared by."""
    return ACCURACY if "macro_f1" in row else WER
