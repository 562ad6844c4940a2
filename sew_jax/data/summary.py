"""What a prepared dataset holds, in numbers and as a plot."""

import io
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from sew_jax.rates import SAMPLE_RATE

_QUANTILES = {"shortest": 0.0, "median": 0.5, "95 %": 0.95, "longest": 1.0}


def split_facts(table: pa.Table, *, listed: int, rejected: int) -> dict[str, Any]:
    """What a user wants to know of a split.

    `listed` is `utterances` plus `rejected`, each recording that was cut into `pieces` counted once.
    """
    seconds = table["samples"].to_numpy() / SAMPLE_RATE
    texts = [text for text in table["text"].to_pylist() if text]
    characters = Counter(character for text in texts for character in text)
    speakers = set(table["speaker"].to_pylist()) - {""}
    return {
        "listed": listed,
        "utterances": len(table),
        "rejected": rejected,
        "cut": len(table["source"].unique().drop_null()),
        "pieces": len(table) - table["source"].null_count,
        "hours": round(float(seconds.sum()) / 3600, 4),
        "seconds": {q: round(float(np.quantile(seconds, p)), 2) for q, p in _QUANTILES.items()} if len(table) else {},
        "speakers": len(speakers),
        "transcripts": len(texts),
        "words": sum(len(text.split()) for text in texts),
        "characters": dict(sorted(characters.items())),
    }


def plot_lengths(lengths: dict[str, np.ndarray]) -> bytes:
    """A PNG with the histogram of lengths, in seconds, of each split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: takes a second
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = np.linspace(0, max(seconds.max() for seconds in lengths.values()), 61)
    for split, seconds in lengths.items():
        axes.hist(
            seconds, edges.tolist(), histtype="step", label=f"{split}: {len(seconds)}, {seconds.sum() / 3600:.2f} h"
        )
    axes.set(xlabel="length of an utterance (s)", ylabel="utterances", yscale="log")
    axes.legend(fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
