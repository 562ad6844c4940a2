"""What a value of a config may be; each kind of rule says in a few words what is wrong with one that it may not."""

import abc
import dataclasses
import math
import numbers
import typing
from collections.abc import Callable
from typing import Any

from sew_jax.compression import Compression, parse_table
from sew_jax.errors import UserError

NO_DEFAULT = object()
INT32 = 2**31 - 1  # the largest count of updates


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """One key.

    Args:
      meaning: in a few words, for messages.
      default: what a run was that was recorded before the key existed; a key that joins later needs one.
      inherits: may be None, for what `init_from` has.
      optional: may be missing.
    """

    meaning: str = ""
    default: Any = dataclasses.field(default=NO_DEFAULT, kw_only=True)
    inherits: bool = dataclasses.field(default=False, kw_only=True)
    optional: bool = dataclasses.field(default=False, kw_only=True)

    def problem(self, value: Any) -> str:
        """What is wrong with the value, to be read after its key; empty where nothing is."""
        if value is None and self.inherits:
            return ""
        wrong = self._problem(value)
        return f"{wrong} ({self.meaning})" if wrong and self.meaning else wrong

    @abc.abstractmethod
    def _problem(self, value: Any) -> str:
        """What is wrong with a value that is there; empty where nothing is."""


@dataclasses.dataclass(frozen=True)
class Number(Rule):
    """From `low` to `high`; `above` and `below` leave the ends out. Finite, and whole where `whole` says so."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False

    def _problem(self, value: Any) -> str:
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return f"{value!r} must be a {'whole ' if self.whole else ''}number"
        number = float(value)
        low_enough = number < self.high if self.below else number <= self.high
        high_enough = number > self.low if self.above else number >= self.low
        if math.isfinite(number) and low_enough and high_enough:
            return ""
        return f"{value} must {self._range(high_enough)}"

    def _range(self, high_enough: bool) -> str:
        low, high = f"{self.low:.10g}", f"{self.high:.10g}"
        if math.isinf(self.low):
            return "be a finite number"
        least = f"be above {low}" if self.above else f"be at least {low}"
        if math.isinf(self.high):
            return least
        if self.high >= INT32:  # an end that few come near to
            return f"be at most {high}" if high_enough else least
        if not self.above and not self.below:
            return f"lie between {low} and {high}"
        return f"{least} and {'below' if self.below else 'at most'} {high}"


def whole(low: int, meaning: str, high: float = math.inf, **options: Any) -> Number:
    """A whole number from `low` to `high`."""
    return Number(meaning, low, high, whole=True, **options)


def positive(meaning: str, **options: Any) -> Number:
    """A number above 0."""
    return Number(meaning, 0, above=True, **options)


def at_least(low: float, meaning: str, **options: Any) -> Number:
    """A number from `low`."""
    return Number(meaning, low, **options)


def fraction(meaning: str, **options: Any) -> Number:
    """A number from 0 to 1."""
    return Number(meaning, 0, 1, **options)


def dropout(meaning: str, **options: Any) -> Number:
    """A probability that leaves something."""
    return Number(meaning, 0, 1, below=True, **options)


@dataclasses.dataclass(frozen=True)
class CountOrShare(Rule):
    """A whole number, or a share below 1."""

    def _problem(self, value: Any) -> str:
        wrong = at_least(0, "").problem(value)
        return wrong or ("" if value < 1 or value == int(value) else f"{value} must be whole, or a share below 1")


@dataclasses.dataclass(frozen=True)
class Workers(Rule):
    """A number of processes, -1 for one a core."""

    def _problem(self, value: Any) -> str:
        wrong = whole(-1, "").problem(value)
        return f"{value!r} must be a number of processes, or -1: as many as cores" if wrong else ""


@dataclasses.dataclass(frozen=True)
class MeshAxis(Rule):
    """Devices along an axis, -1 for all the rest."""

    def _problem(self, value: Any) -> str:
        wrong = value == 0 or whole(-1, "").problem(value)
        return f"{value!r} must be a number of devices, or -1: all the rest" if wrong else ""


@dataclasses.dataclass(frozen=True)
class Flag(Rule):
    """True or False."""

    def _problem(self, value: Any) -> str:
        return "" if isinstance(value, bool) else f"{value!r} must be True or False"


@dataclasses.dataclass(frozen=True)
class Choice(Rule):
    """One of some values."""

    allowed: tuple[str, ...] = ()

    def _problem(self, value: Any) -> str:
        if value in self.allowed:
            return ""
        named = [name or "nothing" for name in self.allowed]
        return f"{value!r} is unknown; choose {'one of ' if len(named) > 2 else ''}" + (
            ", ".join(named) if len(named) > 2 else " or ".join(named)
        )


def choice_of(owner: type, field: str, **options: Any) -> Choice:
    """The values that the type of a dataclass's field names."""
    return Choice("", typing.get_args(typing.get_type_hints(owner)[field]), **options)


@dataclasses.dataclass(frozen=True)
class Text(Rule):
    """A text; `hint` says what to write where it may not be empty."""

    hint: str = ""

    def _problem(self, value: Any) -> str:
        if not isinstance(value, str):
            return f"{value!r} must be a text"
        return f"is empty; {self.hint}" if self.hint and not value.strip() else ""


@dataclasses.dataclass(frozen=True)
class Parsed(Rule):
    """A text that `parse` takes, or says in a ValueError what is wrong with it; an empty one where `empty`."""

    parse: Callable[[str], object] = str
    empty: bool = False

    def _problem(self, value: Any) -> str:
        if not isinstance(value, str):
            return f"{value!r} must be a text"
        if not value.strip():
            return "" if self.empty else f"is empty; {self.meaning}"
        try:
            self.parse(value)
        except ValueError as error:
            return str(error)
        return ""

    def problem(self, value: Any) -> str:
        """As of any rule; the meaning says what to write."""
        return self._problem(value)


@dataclasses.dataclass(frozen=True)
class Settings(Rule):
    """Names of settings, joined by commas, or one after the other."""

    empty: bool = True

    def _problem(self, value: Any) -> str:
        if not value:
            return "" if self.empty else "no names given; write for example s1q1k1,s2q1k1"
        try:
            parse_table(value)
        except UserError as error:
            return str(error)
        return ""


@dataclasses.dataclass(frozen=True)
class Factors(Rule):
    """A sequence of factors; `per_layer` ones may have one a layer."""

    per_layer: bool = False
    empty: bool = False

    def _problem(self, value: Any) -> str:
        if not isinstance(value, (tuple, list)):
            return f"{value!r} must be a list of factors, such as 1,2"
        if not value and not self.empty:
            return "is an empty set of factors; give at least (1,)"
        for factor in value:
            try:
                Compression(1, factor) if self.per_layer else Compression(factor)
            except UserError:
                return f"{factor!r} is not a factor; give integers of at least 1 (1 = off)"
        return ""
