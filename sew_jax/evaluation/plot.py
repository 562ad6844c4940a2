"""The trade-off as a picture; the one file of it that knows matplotlib."""

import io
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sew_jax.compression import Compression
from sew_jax.evaluation.tradeoff import Point, ways

_MARKERS = "os^vDPX*<>"  # of decoders and run times


def plot_tradeoff(points: Sequence[Point]) -> bytes:
    """A PNG file's bytes: splits side by side; colour is squeeze, shape decoder and run time, hollow not trained."""
    splits = list(dict.fromkeys(point.split for point in points))
    figure = Figure(figsize=(8 * len(splits), 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        _plot_split(axes, [point for point in points if point.split == split])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plot_split(axes: Axes, points: Sequence[Point]) -> None:
    front = sorted((p for p in points if p.on_front), key=lambda p: p.relative_time)
    measure = points[0].measure
    line: dict[str, Any] = {"color": "0.75", "linewidth": 1.5, "zorder": 1, "label": "front"}
    axes.plot([p.relative_time for p in front], [100 * measure.of(p.wer) for p in front], **line)
    way = dict(zip(points, ways(points), strict=True))
    decoders = list(dict.fromkeys(way.values()))
    lengths = sorted({_length(p) for p in points})
    for decoder, length, trained in itertools.product(decoders, lengths, (True, False)):
        group = [p for p in points if (way[p], _length(p), p.trained) == (decoder, length, trained)]
        if group:
            label = [length[1], decoder if len(decoders) > 1 else "", "" if trained else "not trained on"]
            marker = _MARKERS[decoders.index(decoder) % len(_MARKERS)]
            _plot_group(axes, group, f"C{lengths.index(length)}", marker, trained, ", ".join(filter(None, label)))
    for i, point in enumerate(sorted(points, key=lambda p: (p.relative_time, p.wer))):
        offset, side = ((6, 4), "left") if i % 2 else ((-6, -10), "right")  # neighbours are close on such a curve
        text: dict[str, Any] = {
            "textcoords": "offset points",
            "fontsize": 8,
            "color": "0.25",
            "xytext": offset,
            "ha": side,
        }
        axes.annotate(point.setting, (point.relative_time, 100 * measure.of(point.wer)), **text)
    axes.set_xlabel("time, relative to s1q1k1")
    axes.set_ylabel(f"{measure.title} (%)")
    highest = max(measure.interval(p.wer_low, p.wer_high)[1] for p in points)
    axes.set_ylim(bottom=0, top=1.15 * max(100 * highest, 1))
    axes.margins(x=0.12)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False)
    first, settings = points[0], len({p.setting for p in points})
    axes.set_title(
        f"{first.split or 'all data'}: one set of weights, {settings} settings\n"
        f"{first.utterances} utterances, {first.device}, "
        f"{_listed(p.engine for p in points)}"
        + (f", {_listed(p.decoder for p in points)} decoding" if measure.is_error else ""),
        fontsize=10,
    )


def _plot_group(axes: Axes, group: Sequence[Point], colour: str, marker: str, trained: bool, label: str) -> None:
    """Points of one colour and shape, with their intervals."""
    rates = [p.measure.of(p.wer) for p in group]
    lows, highs = zip(*(p.measure.interval(p.wer_low, p.wer_high) for p in group), strict=True)
    below = [100 * max(0, rate - low) for rate, low in zip(rates, lows, strict=True)]
    above = [100 * max(0, high - rate) for rate, high in zip(rates, highs, strict=True)]
    axes.errorbar(
        [p.relative_time for p in group],
        [100 * rate for rate in rates],
        yerr=[below, above],
        fmt=marker,
        markersize=6.5,
        color=colour,
        markerfacecolor=colour if trained else "white",
        elinewidth=0.6,
        zorder=2,
        label=label,
    )


def _listed(values: Iterable[object]) -> str:
    """Each once."""
    return " and ".join(dict.fromkeys(map(str, values)))


def _length(point: Point) -> tuple[float, str]:
    """How many frames a frame of the transformer stands for, and that in words."""
    setting = Compression.parse(point.setting)
    words = f"rate {setting.rate:g}" if setting.rate < 1 else f"squeeze {setting.squeeze}"
    return setting.squeeze / setting.rate, words
