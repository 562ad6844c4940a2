"""The table of word error rate against time: a row for each setting, as JSON, CSV, text and a plot."""

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.files import write_json, write_whole


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting. Rates are fractions; seconds are of the whole evaluated set, the median over repeats."""

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
    relative_time: float  # to s1q1k1 and greedy decoding
    macs_per_s: float  # multiply-accumulates for one second of audio
    relative_macs: float  # to s1q1k1
    device: str
    dtype: str
    trained: bool  # whether the setting was in the table of the last training
    on_front: bool = False  # no other row of its split is both faster and better


_KEYS = {"substitutions": "sub", "deletions": "del", "insertions": "ins"}  # field -> key in files


def mark_front(rows: Sequence[Row]) -> list[Row]:
    """Rows with `on_front` set for those that no other row beats in time or WER without losing in the other."""

    def beaten(row: Row) -> bool:
        return any(
            o.split == row.split
            and o.seconds <= row.seconds
            and o.wer <= row.wer
            and (o.seconds < row.seconds or o.wer < row.wer)
            for o in rows
        )

    return [dataclasses.replace(row, on_front=not beaten(row)) for row in rows]


def to_objects(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as files hold them."""
    return [{_KEYS.get(k, k): v for k, v in dataclasses.asdict(row).items()} for row in rows]


def write_tradeoff(rows: Sequence[Row], folder: Path) -> bytes:
    """Writes tradeoff.json, tradeoff.csv and tradeoff.png, each whole or not at all; returns the plot, a PNG file's bytes."""
    objects = to_objects(rows)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(objects[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(objects)
    write_json(folder / "tradeoff.json", objects)
    write_whole(folder / "tradeoff.csv", table.getvalue().encode())
    plot = _plot(rows)
    write_whole(folder / "tradeoff.png", plot)
    return plot


def read_tradeoff(folder: Path) -> list[Row]:
    """The rows that `write_tradeoff` wrote.

    Raises:
      UserError: there are none, or the file is something else.
    """
    path, fields = Path(folder) / "tradeoff.json", {v: k for k, v in _KEYS.items()}
    try:
        return [
            Row(**{fields.get(k, k): v for k, v in row.items()}) for row in json.loads(path.read_text(encoding="utf-8"))
        ]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; run configs/evaluate.py first") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a trade-off table ({error}); run configs/evaluate.py again") from error


def format_table(rows: Sequence[Row]) -> str:
    """The table for the screen."""
    head = (
        "setting", "WER %", "95 %", "CER %", "sub", "del", "ins", "time", "MACs", "seconds (min-max)", "x real time", "",
    )  # fmt: skip
    lines = [
        (
            row.setting, f"{100 * row.wer:.2f}", f"{100 * row.wer_low:.1f}-{100 * row.wer_high:.1f}",
            f"{100 * row.cer:.2f}", str(row.substitutions), str(row.deletions), str(row.insertions),
            f"{row.relative_time:.2f}", f"{row.relative_macs:.2f}",
            f"{row.seconds:.3g} ({row.seconds_min:.3g}-{row.seconds_max:.3g})", f"{1 / row.rtf:.0f}",
            " ".join(["*"] * row.on_front + ["not trained on"] * (not row.trained)),
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def spell(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        return "  ".join(c.ljust(w) if i in (0, 11) else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    text = [spell(head)]
    pairs = zip(rows, lines, strict=True)
    groups = {key: list(group) for key, group in itertools.groupby(pairs, lambda pair: _kind(pair[0]))}
    for kind, group in groups.items():
        text += [f"{kind}:"] * (len(groups) > 1) + [spell(line) for _, line in group]
    text.append(
        "(time and MACs: s1q1k1 = 1; 95 %: of WER, by resampling utterances; *: nothing is both faster and better)"
    )
    return "\n".join(text)


def _kind(row: Row) -> str:
    return f"{row.split or 'all'}, {row.decoder}"


def _plot(rows: Sequence[Row]) -> bytes:
    """Splits side by side; colour is the squeeze factor, shape the decoder, hollow means not trained on."""
    splits = list(dict.fromkeys(row.split for row in rows))
    figure = Figure(figsize=(8 * len(splits), 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        _plot_split(axes, [row for row in rows if row.split == split])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plot_split(axes: Axes, rows: Sequence[Row]) -> None:
    front = sorted((r for r in rows if r.on_front), key=lambda r: r.relative_time)
    axes.plot(
        [r.relative_time for r in front], [100 * r.wer for r in front], color="0.75", linewidth=1.5, zorder=1,
        label="front",
    )  # fmt: skip
    decoders = list(dict.fromkeys(r.decoder for r in rows))
    squeezes = sorted({Compression.parse(r.setting).squeeze for r in rows})
    for decoder, squeeze, trained in itertools.product(decoders, squeezes, (True, False)):
        group = [
            r
            for r in rows
            if (r.decoder, Compression.parse(r.setting).squeeze, r.trained) == (decoder, squeeze, trained)
        ]
        if group:
            colour = f"C{squeezes.index(squeeze)}"
            axes.errorbar(
                [r.relative_time for r in group], [100 * r.wer for r in group], fmt="os^v"[decoders.index(decoder) % 4],
                yerr=[[100 * max(0, d) for d in side] for side in zip(*((r.wer - r.wer_low, r.wer_high - r.wer) for r in group), strict=True)],
                markersize=6.5, color=colour, markerfacecolor=colour if trained else "white", elinewidth=0.6, zorder=2,
                label=f"squeeze {squeeze}" + f", {decoder}" * (len(decoders) > 1) + ", not trained on" * (not trained),
            )  # fmt: skip
    for i, row in enumerate(sorted(rows, key=lambda r: (r.relative_time, r.wer))):
        axes.annotate(
            row.setting, (row.relative_time, 100 * row.wer), textcoords="offset points", fontsize=8, color="0.25",
            xytext=(6, 4) if i % 2 else (-6, -10), ha="left" if i % 2 else "right",  # neighbours are close on such a curve
        )  # fmt: skip
    axes.set_xlabel("time, relative to s1q1k1")
    axes.set_ylabel("word error rate (%)")
    axes.set_ylim(bottom=0, top=1.15 * max(100 * max(r.wer_high for r in rows), 1))
    axes.margins(x=0.12)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False)
    row, settings = rows[0], len({r.setting for r in rows})
    axes.set_title(
        f"{row.split or 'all data'}: one set of weights, {settings} settings\n"
        f"{row.utterances} utterances, {row.device}, {row.dtype}, {' and '.join(decoders)} decoding",
        fontsize=10,
    )
