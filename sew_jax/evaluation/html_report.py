"""tradeoff.html: an evaluation as one file that a browser shows without a network; html_report.html says how."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sew_jax.files import write_whole
from sew_jax.metrics.bootstrap import difference_interval
from sew_jax.metrics.confusions import Alignment, align, count_confusions, word_errors, worst_utterances

_TEMPLATE = Path(__file__).with_name("html_report.html")


def write_page(path: Path, payload: dict[str, Any], most_bytes: int = 20_000_000) -> None:
    """Writes the page, whole or not at all.

    Args:
      payload: what was measured:
        about: label -> text, shown in this order: what was run, on what and where. `model` becomes the title, `command`
          is set as code.
        rows: objects as in tradeoff.json, in the order of the table; `withheld` says why no budget picks one.
        transcripts: split -> {"ids": [...], "references": [...], "hypotheses": {"SETTING/DECODER": [...]}}, with
          hypotheses for each row of the split.
      most_bytes: of transcripts. Where there are more, the page holds an even sample of the utterances and says so;
        errors are counted on all of them.
    """
    splits = {
        split: _split([row for row in payload["rows"] if row["split"] == split], texts)
        for split, texts in payload["transcripts"].items()
    }
    size = sum(len(_json(part).encode()) for part in splits.values())
    if size > most_bytes:
        splits = {split: _sample(part, most_bytes / size) for split, part in splits.items()}
    data = _json({"about": payload["about"], "rows": payload["rows"], "splits": splits})
    # within a script element `<` alone can end it or open a comment
    page = _TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", data.replace("<", "\\u003c"))
    write_whole(path, page.encode())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _split(rows: Sequence[dict[str, Any]], texts: dict[str, Any]) -> dict[str, Any]:
    """What html_report.html reads of a split: transcripts, and for each row what went wrong and how it compares."""
    references = [" ".join(text.split()) for text in texts["references"]]
    words_U = [len(text.split()) for text in references]
    systems, details, errors_U = {}, {}, {}
    align_all = _side_by_side if any("accuracy" in row for row in rows) else align
    for key in map(_key, rows):
        hypotheses = [" ".join(text.split()) for text in texts["hypotheses"][key]]
        alignments = align_all(references, hypotheses)
        edits = [_edits(alignment) for alignment in alignments]
        errors_U[key] = [word_errors(alignment) for alignment in alignments]
        # of a text without errors the reference says all
        systems[key] = {"texts": [h if e else None for h, e in zip(hypotheses, edits, strict=True)], "edits": edits}
        details[key] = count_confusions(alignments)._asdict() | {
            "worst": [
                (texts["ids"][i], references[i], hypotheses[i], edits[i]) for i in worst_utterances(alignments, most=5)
            ]
        }
    for row in rows:
        details[_key(row)]["compared"] = [
            (other, *_difference(errors_U[_key(row)], errors_U[other], words_U)) for other in _rivals(row, rows)
        ]
    return {
        "utterances": len(references),
        "ids": texts["ids"],
        "references": references,
        "systems": systems,
        "details": details,
    }


def _side_by_side(references: list[str], hypotheses: list[str]) -> list[Alignment]:
    """Labels, of which each stands for its utterance or frame."""
    return [list(zip(*map(str.split, pair), strict=True)) for pair in zip(references, hypotheses, strict=True)]


def _key(row: dict[str, Any]) -> str:
    return f"{row['setting']}/{row['decoder']}"


def _rivals(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a row is compared with: the first setting of its decoder, and its setting with the first decoder."""
    same_decoder = next(_key(other) for other in rows if other["decoder"] == row["decoder"])
    same_setting = next(_key(other) for other in rows if other["setting"] == row["setting"])
    return [key for key in dict.fromkeys((same_decoder, same_setting)) if key != _key(row)]


def _difference(errors_U: list[int], other_U: list[int], words_U: list[int]) -> tuple[float, float, float]:
    """Word error rate less that of another, with its interval."""
    return (sum(errors_U) - sum(other_U)) / max(sum(words_U), 1), *difference_interval(errors_U, other_U, words_U)


def _edits(alignment: Alignment) -> str:
    """An alignment without its words: `2s1di` is two right, a substitution, one right, a deletion, an insertion."""
    text, right = "", 0
    for reference, hypothesis in alignment:
        if reference == hypothesis:
            right += 1
            continue
        text += (str(right) if right else "") + ("i" if not reference else "d" if not hypothesis else "s")
        right = 0
    return text


def _sample(part: dict[str, Any], share: float) -> dict[str, Any]:
    """A split with the transcripts of a share of its utterances, evenly chosen."""
    count = part["utterances"]
    keep = np.linspace(0, count - 1, int(count * share)).astype(int).tolist()

    def kept(values: list) -> list:
        return [values[i] for i in keep]

    return part | {
        "ids": kept(part["ids"]),
        "references": kept(part["references"]),
        "systems": {key: {k: kept(v) for k, v in system.items()} for key, system in part["systems"].items()},
    }
