"""study.png: word error rate against time, an arm a colour, seeds as points and their mean as a line."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sew_jax.study.plan import ONE_SETTING

# Okabe and Ito's colours, which all kinds of sight tell apart; nothing is said by colour alone
LOOKS = {
    "stochastic": ("#0072b2", "o", "-"),
    "dedicated": ("#1b1b1b", "s", "--"),
    "specialised": ("#d55e00", "^", "--"),
    "random": ("#8a8a8a", "x", ":"),
    "sandwich": ("#009e73", "D", "-"),
    "distilled": ("#cc79a7", "v", "-"),
}


def plot_study(rows: Sequence[dict[str, Any]], splits: Sequence[str]) -> bytes:
    """A PNG file's bytes; splits side by side. Rows as in study.csv."""
    figure = Figure(figsize=(8 * len(splits), 5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        _plot_split(axes, [row for row in rows if row["split"] == split and row["relative_time"] != ""], split)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plot_split(axes: Axes, rows: Sequence[dict[str, Any]], split: str) -> None:
    single = {row["setting"] for row in rows if row["arm"] in ONE_SETTING}
    shown = [row for row in rows if not single or row["setting"] in single]
    for arm, (colour, marker, line) in LOOKS.items():
        mine = [row for row in shown if row["arm"] == arm]
        means = sorted((row for row in mine if row["seed"] == "mean"), key=lambda row: row["relative_time"])
        seeds = [row for row in mine if row["seed"] != "mean"]
        if means:
            axes.plot(*_points(means), color=colour, linestyle=line, linewidth=1.6, zorder=2, label=arm, marker=marker)
            axes.scatter(*_points(seeds), color=colour, marker=marker, s=14, alpha=0.45, linewidths=0.8, zorder=3)
    settings = {row["setting"]: row["relative_time"] for row in shown}
    top = 100 * max(row["wer"] for row in shown)
    for i, (setting, time) in enumerate(sorted(settings.items(), key=lambda pair: pair[1])):
        axes.axvline(time, color="0.93", zorder=0)
        name = axes.annotate(setting, (time, 1.17 * top), xytext=(0, -11 * (i % 2)), textcoords="offset points")
        name.set(fontsize=8, color="0.25", ha="center", va="top")
    count = len({row["seed"] for row in shown} - {"mean"})
    axes.set_xlabel("time, relative to s1q1k1")
    axes.set_ylabel("word error rate (%)")
    axes.set_ylim(bottom=0, top=1.2 * max(top, 1))
    axes.margins(x=0.08)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False, loc="upper right", bbox_to_anchor=(1, 0.9))
    counted = "1 seed" if count == 1 else f"{count} seeds"
    axes.set_title(f"{split}: lines are means over {counted}, small points the seeds", fontsize=10)


def _points(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["relative_time"] for row in rows], [100 * row["wer"] for row in rows]
