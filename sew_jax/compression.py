"""Compression settings: the value that names one compute budget, the table of a run, and the draw of each update.

A setting says by how much the transformer's input is squeezed, by how much each layer pools its queries and its keys
and values, and what share of its frames a layer merges. It is frozen and hashable, because it is the only static
argument of a step: one setting, one XLA program.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Sequence

from sew_jax.errors import UserError
from sew_jax.hashing import uniform_int

Factor = int | tuple[int, ...]
Share = float | tuple[float, ...]
_SHARE = r"(?:0?\.\d+|0)"
_NAME = re.compile(rf"(?:s(\d+)|r(0?\.\d+|1))q(\d+(?:\.\d+)*)k(\d+(?:\.\d+)*)(?:m({_SHARE}(?:-{_SHARE})*))?")
MOST_MERGED = 0.5  # of a layer's frames: each second one at most goes into a neighbour


@dataclasses.dataclass(frozen=True)
class Compression:
    """One compute budget; `Compression()` is wav2vec 2.0 itself.

    Args:
      squeeze: factor S between the 50 Hz features and the transformer's input.
      rate: in place of a squeeze, the share of the 50 Hz features' frames that a compressor leaves.
      query_pool: factor Q of each layer's queries: one number, or one per layer.
      kv_pool: factor K of each layer's keys and values: one number, or one per layer.
      merge: share of its frames that each layer merges into their neighbours: one number, or one per layer.

    Raises:
      UserError: a factor is not an integer of at least 1, a share not from 0 to a half in thousandths, or a rate not
        one up to 1.
    """

    squeeze: int = 1
    query_pool: Factor = 1
    kv_pool: Factor = 1
    merge: Share = 0.0
    rate: float = 1.0

    def __post_init__(self):
        for field in ("squeeze", "query_pool", "kv_pool"):
            value = getattr(self, field)
            per_layer = isinstance(value, (tuple, list)) and field != "squeeze"
            factors = tuple(value) if per_layer else (value,)
            if not factors or not all(isinstance(f, int) and not isinstance(f, bool) and f >= 1 for f in factors):
                raise UserError(
                    f"compression.{field}: {value!r} is not a factor; give integers of at least 1 (1 = off)"
                )
            if per_layer:  # equal factors in all layers are the uniform setting, and must compare and hash equal to it
                object.__setattr__(self, field, factors[0] if len(set(factors)) == 1 else factors)
        shares = tuple(self.merge) if isinstance(self.merge, (tuple, list)) else (self.merge,)
        if not shares or not all(_is_in_thousandths(share) and 0 <= share <= MOST_MERGED for share in shares):
            raise UserError(
                f"compression.merge: {self.merge!r} is not a share of a layer's frames; give 0 to {MOST_MERGED}, of at "
                "most three decimals (0 = off)"
            )
        if not _is_in_thousandths(self.rate) or not 0 < self.rate <= 1 or (self.rate < 1 and self.squeeze > 1):
            raise UserError(
                f"compression.rate: {self.rate!r} is not a share of the frames that goes with squeeze {self.squeeze}; "
                "give one above 0 and at most 1, of at most three decimals, with squeeze 1"
            )
        object.__setattr__(self, "rate", float(self.rate))
        object.__setattr__(self, "merge", float(shares[0]) if len(set(shares)) == 1 else tuple(map(float, shares)))

    @property
    def name(self) -> str:
        """`s2q1k2`, `r0.4q1k1`, `s1q1k1m0.2`; factors of layers are joined by dots, shares by dashes: `m0-0.25`."""
        shares = self.merge if isinstance(self.merge, tuple) else (self.merge,)
        merge = "m" + "-".join(f"{share:g}" for share in shares) if self.merges else ""
        first = f"r{self.rate:g}" if self.rate < 1 else f"s{self.squeeze}"
        return f"{first}q{_spell(self.query_pool)}k{_spell(self.kv_pool)}{merge}"

    def __str__(self) -> str:
        return self.name

    @property
    def merges(self) -> bool:
        """Whether any layer merges frames."""
        return self.merge != 0

    def layer_merges(self, layers: int) -> list[float]:
        """The share of its frames that each of `layers` layers merges.

        Raises:
          UserError: a per-layer setting is of another number of layers.
        """
        return list(_spread(self, "merge", layers))

    def layer_pools(self, layers: int) -> list[tuple[int, int]]:
        """The (Q, K) of each of `layers` layers.

        Raises:
          UserError: a per-layer setting is of another number of layers.
        """
        self.layer_merges(layers)  # a setting fits a depth in all its parts
        return list(zip(_spread(self, "query_pool", layers), _spread(self, "kv_pool", layers), strict=True))

    @classmethod
    def parse(cls, name: str) -> "Compression":
        """The setting that `name` spells.

        Raises:
          UserError: it spells none.
        """
        match = _NAME.fullmatch(name.strip())
        if not match:
            raise UserError(
                f"setting {name!r} is unknown; write squeeze, query and key-value factors such as s1q1k1, s2q1k2 or, "
                "one factor per layer, s2q1.2.2.1k1; a rate may stand for the squeeze, as in r0.4q1k1; shares to merge "
                "follow, as in s1q1k1m0.2 or, one per layer, s1q1k1m0-0.2-0-0.2"
            )
        squeeze, rate, query, kv, merge = match.groups()
        return cls(
            int(squeeze or 1),
            tuple(map(int, query.split("."))),
            tuple(map(int, kv.split("."))),
            tuple(map(float, (merge or "0").split("-"))),
            float(rate or 1),
        )


def _spell(factor: Factor) -> str:
    return str(factor) if isinstance(factor, int) else ".".join(map(str, factor))


def _is_in_thousandths(share: object) -> bool:
    """Whether a number has at most three decimals, so that lengths can be counted in whole numbers."""
    return isinstance(share, (int, float)) and not isinstance(share, bool) and round(share, 3) == share


def _spread(setting: Compression, field: str, layers: int) -> tuple:
    factor = getattr(setting, field)
    if not isinstance(factor, tuple):
        return (factor,) * layers
    if len(factor) != layers:
        what = "shares" if field == "merge" else "factors"
        raise UserError(f"setting {setting}: {field} has {len(factor)} {what}, but the model has {layers} layers")
    return factor


def product_table(squeeze: Iterable[int], query_pool: Iterable[Factor], kv_pool: Iterable[Factor]) -> list[Compression]:
    """Every combination of the three sets, in order and without repetition.

    Raises:
      UserError: a set is empty or holds something that is not a factor.
    """
    table = [Compression(*factors) for factors in itertools.product(squeeze, query_pool, kv_pool)]
    if not table:
        raise UserError("compression: an empty set of factors; give at least (1,) for squeeze, query_pool and kv_pool")
    return list(dict.fromkeys(table))


def parse_table(names: str | Sequence[str]) -> list[Compression]:
    """A table from setting names: a sequence, or one string separated by commas."""
    names = [name for name in names.split(",") if name.strip()] if isinstance(names, str) else names
    if not names:
        raise UserError("settings: no names given; write for example --config.settings=s1q1k1,s2q1k1")
    return list(dict.fromkeys(Compression.parse(name) for name in names))


def settings_table(names: str, squeeze: Iterable[int], query_pool: Iterable[Factor], kv_pool: Iterable[Factor]):
    """The settings of a run: `names` where given, else the product of the three sets."""
    return parse_table(names) if names else product_table(squeeze, query_pool, kv_pool)


@dataclasses.dataclass(frozen=True)
class Draw:
    """What one update computes: a setting, and others beside it on the same extractor output, masks and targets."""

    setting: Compression
    others: tuple[Compression, ...] = ()

    @property
    def name(self) -> str:
        """`s1q1k1`, or `s1q1k1+s2q1k1+s4q1k1`."""
        return "+".join(map(str, (self.setting, *self.others)))

    def __str__(self) -> str:
        return self.name


def uniform_draws(table: Sequence[Compression]) -> list[Draw]:
    """One setting an update."""
    return [Draw(setting) for setting in table]


def sandwich_draws(table: Sequence[Compression], cost: Callable[[Compression], float]) -> list[Draw]:
    """The largest setting, the smallest and one between them: the sandwich rule (US-Nets, arXiv 1903.05134).

    Raises:
      UserError: the table has one setting only.
    """
    if len(table) < 2:
        raise UserError("sandwich.enabled: a table of one setting has nothing beside the largest; name more settings")
    largest, *between, smallest = sorted(table, key=cost, reverse=True)
    return [Draw(largest, (middle, smallest)) for middle in between] or [Draw(largest, (smallest,))]


def draw(draws: Sequence[Draw], seed: int, step: int) -> Draw:
    """That of update `step`: uniform, and the same on every host without a word exchanged."""
    return draws[uniform_int(len(draws), seed, step, "setting")]
