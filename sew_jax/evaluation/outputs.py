"""What an evaluation leaves in its workdir, and shows on the screen."""

import csv
import datetime
import io
import itertools
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import sew_jax
from sew_jax.buckets import make_folder
from sew_jax.console import command_line
from sew_jax.decoding.eval_set import EvalSet
from sew_jax.decoding.recognizer import Recognizer
from sew_jax.evaluation.html_report import write_page
from sew_jax.evaluation.plot import plot_tradeoff
from sew_jax.evaluation.scoring import Scored
from sew_jax.evaluation.tradeoff import Point, to_objects, ways, why_withheld
from sew_jax.files import write_json, write_whole
from sew_jax.metrics.tensorboard import write_evaluation_events
from sew_jax.tables import markdown_table

_SAMPLES = 10  # utterances whose transcripts TensorBoard shows


def write_outputs(workdir: Path, points: Sequence[Point], scored: Sequence[Scored], about: dict[str, str]) -> None:
    """Writes tradeoff.json, .csv, .png and .html, transcripts/ and TensorBoard's events, each whole or not at all.

    Args:
      about: label -> text, what the page says of the run.
    """
    _write_transcripts(workdir, scored)
    plot = write_tradeoff(points, workdir)
    write_evaluation_events(workdir, plot, _texts(points, scored))
    said = [{"decoder": way, "withheld": why_withheld(p, points)} for p, way in zip(points, ways(points), strict=True)]
    rows = [row | more for row, more in zip(to_objects(points), said, strict=True)]
    payload = {"about": about, "rows": rows, "transcripts": _transcripts(scored)}
    write_page(workdir / "tradeoff.html", payload)


def write_tradeoff(points: Sequence[Point], folder: Path) -> bytes:
    """Writes tradeoff.json, tradeoff.csv and tradeoff.png; returns the plot, a PNG file's bytes."""
    objects = to_objects(points)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(objects[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(objects)
    write_json(folder / "tradeoff.json", objects)
    write_whole(folder / "tradeoff.csv", table.getvalue().encode())
    plot = plot_tradeoff(points)
    write_whole(folder / "tradeoff.png", plot)
    return plot


def format_table(points: Sequence[Point]) -> str:
    """The table for the screen."""
    measure = points[0].measure
    of_texts = ("WER %", "95 %", "CER %", "sub", "del", "ins")
    of_labels = ("accuracy %", "95 %", "macro F1 %", "95 %", "wrong")
    errors = of_texts if measure.is_error else of_labels
    head = ("setting", *errors, "time", "MACs", "seconds (min-max)", "x real time")
    lines = [_cells(point) for point in points]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]

    def spell(cells: Sequence[str], remark: str = "") -> str:
        name, *numbers = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([name, *numbers, remark]).rstrip()

    text = [spell(head)]
    kinds = [f"{point.split or 'all'}, {way}" for point, way in zip(points, ways(points), strict=True)]
    groups = itertools.groupby(zip(kinds, points, lines, strict=True), lambda row: row[0])
    by_kind = {kind: list(group) for kind, group in groups}
    for kind, group in by_kind.items():
        if len(by_kind) > 1:
            text.append(f"{kind}:")
        text += [spell(cells, _remark(point, points)) for _, point, cells in group]
    empty = {point.split or "all": point.empty_references for point in points if point.empty_references}
    text += [
        f"({split}: {count} references are empty; what is written there counts as insertions)"
        for split, count in empty.items()
    ]
    of = "WER, " if measure.is_error else ""
    by = f"95 %: {'of ' if of else ''}{of}by resampling utterances"
    text.append(f"(time and MACs: s1q1k1 = 1; {by}; *: nothing is both faster and better)")
    return "\n".join(text)


def _cells(point: Point) -> tuple[str, ...]:
    errors: tuple[str, ...]
    if point.accuracy is None:
        errors = _rate_cells(point.wer, point.wer_low, point.wer_high)
        errors += (f"{100 * point.cer:.2f}", *map(str, (point.substitutions, point.deletions, point.insertions)))
    else:
        errors = _rate_cells(point.accuracy, point.accuracy_low, point.accuracy_high)
        errors += _rate_cells(point.macro_f1, point.macro_f1_low, point.macro_f1_high)
        errors += (f"{point.substitutions} of {point.words}",)
    return (
        point.setting,
        *errors,
        f"{point.relative_time:.2f}",
        f"{point.relative_macs:.2f}",
        f"{point.seconds:.3g} ({point.seconds_min:.3g}-{point.seconds_max:.3g})",
        f"{1 / point.rtf:.0f}",
    )


def _rate_cells(rate, low, high) -> tuple[str, str]:
    return f"{100 * rate:.2f}", f"{100 * low:.1f}-{100 * high:.1f}"


def _remark(point: Point, points: Sequence[Point]) -> str:
    withheld = why_withheld(point, points)
    remarks = ["*" if point.on_front else "", "" if point.trained else "not trained on"]
    return " ".join(filter(None, [*remarks, withheld and f"({withheld}: no budget picks it)"]))


def _empty(sets: Sequence[EvalSet]) -> str:
    counts = {part.split or "all": part.references.count("") for part in sets}
    return "".join(f"; {split}: {count} references are empty" for split, count in counts.items() if count)


def _said(recognizer: Recognizer, sets: Sequence[EvalSet]) -> dict[str, str]:
    if recognizer.labels:
        return {"labels": str(recognizer.labels)}
    assert recognizer.vocabulary
    return {"text": f"text_normalizer={recognizer.vocabulary.normalizer}{_empty(sets)}"}


def describe(
    config: ConfigDict, recognizers: Sequence[Recognizer], sets: Sequence[EvalSet], device: str
) -> dict[str, str]:
    """What was run, and where: label -> text."""
    recognizer = recognizers[0]
    engines = ", ".join(str(one.engine) for one in recognizers)
    used = [f"{name} {version(name)}" for name in dict.fromkeys(one.engine.runtime for one in recognizers)]
    listed = "; ".join(
        f"{part.split or 'all'}: {len(part.ids)} utterances, {part.seconds / 60:.1f} min" for part in sets
    )
    beam = {"n-gram": f"{config.lm}, beam {config.beam.beam}"} if config.lm else {}
    return {
        "model": f"{config.init_from}, {recognizer.state}",
        "data": f"{config.data} ({listed})",
        **_said(recognizer, sets),
        **beam,
        "device": f"{device}, {engines}",
        "timing": f"median of {config.repeats} rounds over all settings, after one to warm up",
        "versions": ", ".join([f"sew_jax {sew_jax.__version__}", *used, f"Python {platform.python_version()}"]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command_line("sew_jax.evaluate from Python"),
    }


def _write_transcripts(workdir: Path, scored: Sequence[Scored]) -> None:
    """transcripts/SETTING.jsonl, and with another decoder than the greedy one SETTING.DECODER.jsonl: all splits.

    Of several run times each has its own files, SETTING.RUNTIME.DTYPE.jsonl.
    """
    folder = workdir / "transcripts"
    make_folder(folder)
    several = len({one.engine for one in scored}) > 1
    files: dict[str, list[str]] = {}
    for one in scored:
        parts = [*(one.engine if several else ()), *([one.decoder] if one.search else ())]
        lines = files.setdefault(".".join([str(one.setting), *parts]), [])
        for i, (name, reference, text) in enumerate(zip(one.part.ids, one.part.references, one.texts, strict=True)):
            line: dict[str, Any] = {"id": name, "reference": reference, "hypothesis": text, "split": one.part.split}
            if one.search and one.search.options.nbest > 1:
                line["nbest"] = [{"text": h.text, "score": round(h.score, 3)} for h in one.search.hypotheses[i]]
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    for name, lines in files.items():
        write_whole(folder / f"{name}.jsonl", "".join(lines).encode())


def _as_word(label: str) -> str:
    return label.replace(" ", "_")


def _texts(points: Sequence[Point], scored: Sequence[Scored]) -> dict[str, str]:
    """For TensorBoard, as Markdown: the table, and a few utterances of the first split at all settings."""
    second = "macro F1" if points[0].macro_f1 is not None else "CER"
    head = ("setting", "split", "decoder", points[0].measure.name, second, "time", "MACs")
    lines = [
        (
            point.setting,
            point.split or "all",
            way,
            f"{point.measure.of(point.wer):.2%}",
            f"{point.cer if point.macro_f1 is None else point.macro_f1:.2%}",
            f"{point.relative_time:.2f}",
            f"{point.relative_macs:.2f}",
        )
        for point, way in zip(points, ways(points), strict=True)
    ]
    texts = {"tradeoff/table": markdown_table(head, lines)}
    part = scored[0].part
    mine = [one for one in scored if one.part is part]
    for i, (name, reference) in enumerate(zip(part.ids[:_SAMPLES], part.references, strict=False)):
        hypotheses = [(f"{one.setting} {way}", one.texts[i]) for one, way in zip(mine, ways(mine), strict=True)]
        texts[f"transcripts/{name}"] = markdown_table(("", name), [("reference", reference), *hypotheses])
    return texts


def _transcripts(scored: Sequence[Scored]) -> dict[str, Any]:
    """All texts, as the page takes them."""
    splits: dict[str, Any] = {}
    for one, way in zip(scored, ways(scored), strict=True):
        references, texts = one.part.references, one.texts
        if one.recognizer.labels:  # each a word there
            references, texts = ([" ".join(map(_as_word, labels)) for labels in both] for both in one.labels)
        empty = {"ids": one.part.ids, "references": references, "hypotheses": {}}
        split = splits.setdefault(one.part.split, empty)
        split["hypotheses"][f"{one.setting}/{way}"] = texts
    return splits
