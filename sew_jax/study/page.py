"""study.html: a study as one file that a browser shows without a network or scripts; page.html says how it looks."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sew_jax.files import write_whole
from sew_jax.study.plan import ONE_SETTING
from sew_jax.study.verdicts import Comparison, Verdict

_TEMPLATE = Path(__file__).with_name("page.html")
_ARMS = {
    "stochastic": "one model for all settings: each update of both trainings draws another setting of the table",
    "dedicated": "a model for each setting: pre-trained and fine-tuned at that setting alone",
    "specialised": "the stochastic pre-training, fine-tuned at one setting alone",
    "random": "one model for all settings, fine-tuned from random weights: what no pre-training gives",
    "sandwich": "as stochastic, but each update computes the largest setting, the smallest and one between",
    "distilled": "as sandwich, and smaller settings also learn from the largest one's output",
}


def write_page(
    path: Path,
    about: dict[str, str],
    rows: Sequence[dict[str, Any]],
    comparisons: Sequence[Comparison],
    verdicts: Sequence[Verdict],
    plot: bytes,
    settings: Sequence[str],
    splits: Sequence[str],
) -> None:
    """Writes the page, whole or not at all.

    Args:
      about: label -> text: what was run, on what and where. `command` is set as code.
      rows: as in study.csv.
      plot: a PNG file's bytes.
      settings, splits: that arms are compared at, and reported on.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    image = base64.b64encode(plot).decode("ascii")
    words = "Word error rate against time; the numbers are in the table below"
    parts = {
        "__ABOUT__": "".join(f"<dt>{_text(k)}</dt><dd>{_code(k, v)}</dd>" for k, v in about.items()),
        "__VERDICTS__": "".join(map(_verdict, verdicts)),
        "__PLOT__": f'<img src="data:image/png;base64,{image}" alt="{words}">',
        "__ARMS__": "".join(f"<dt>{arm}</dt><dd>{_text(_ARMS[arm])}</dd>" for arm in arms),
        "__WER__": "".join(_rates(rows, arms, settings, split) for split in splits),
        "__COMPARED__": "".join(_compared(comparisons, settings, split) for split in splits),
        "__COST__": _costs(rows, arms),
    }
    page = _TEMPLATE.read_text(encoding="utf-8")
    for mark, text in parts.items():
        page = page.replace(mark, text)
    write_whole(path, page.encode())


def _text(value: Any) -> str:
    return html.escape(str(value))


def _code(label: str, text: str) -> str:
    return f"<code>{_text(text)}</code>" if label == "command" else _text(text)


def _verdict(verdict: Verdict) -> str:
    kind = verdict.verdict.replace(" ", "-")
    return (
        f"<article><h3>Claim {verdict.claim}, on {_text(verdict.split)}: "
        f'<strong class="{kind}">{verdict.verdict}</strong></h3>'
        f'<p>{_text(verdict.text)}.</p><p class="faint">{_text(verdict.numbers)}</p></article>'
    )


def _rates(rows: Sequence[dict[str, Any]], arms: Sequence[str], settings: Sequence[str], split: str) -> str:
    """WER of each arm at each setting: the mean, and the seeds below it."""
    means = {(r["arm"], r["setting"]): r for r in rows if r["split"] == split and r["seed"] == "mean"}
    seeds: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["split"] == split and row["seed"] != "mean":
            seeds.setdefault((row["arm"], row["setting"]), []).append(f"{100 * row['wer']:.1f}")
    best = {s: min(means[a, s]["wer"] for a in arms if (a, s) in means) for s in settings}
    timed = {s: next(r["relative_time"] for (_, name), r in means.items() if name == s) for s in settings}

    def cell(arm: str, setting: str) -> str:
        row = means.get((arm, setting))
        if not row:
            return "<td></td>"
        wer = f"{100 * row['wer']:.1f}"
        shown = f"<b>{wer}</b>" if row["wer"] == best[setting] else wer
        return f'<td>{shown}<br><span class="faint">{" ".join(seeds[arm, setting])}</span></td>'

    heads = "".join(f'<th>{s}<br><span class="faint">time {timed[s]:.2f}</span></th>' for s in settings)
    body = "".join(f"<tr><th>{arm}</th>{''.join(cell(arm, s) for s in settings)}</tr>" for arm in arms)
    return _table(f"Word error rate on {split}, %", f'<tr><th class="words">arm</th>{heads}</tr>', body)


def _compared(comparisons: Sequence[Comparison], settings: Sequence[str], split: str) -> str:
    found = {(c.first, c.second, c.setting): c for c in comparisons if c.split == split}
    pairs = list(dict.fromkeys((first, second) for first, second, _ in found))
    if not pairs:
        return ""

    def cell(first: str, second: str, setting: str) -> str:
        one = found.get((first, second, setting))
        if not one:
            return "<td></td>"
        numbers = [f"{100 * value:+.1f}".replace("inf", "∞") for value in (one.difference, one.low, one.high)]
        kind = "better" if one.high < 0 else "worse" if one.low > 0 else ""
        mark = {"better": " ✓", "worse": " ✗", "": ""}[kind]
        return f'<td class="{kind}">{numbers[0]}{mark}<br><span class="faint">{numbers[1]} to {numbers[2]}</span></td>'

    heads = "".join(f"<th>{s}</th>" for s in settings)
    body = "".join(
        f"<tr><th>{first} less {second}</th>{''.join(cell(first, second, s) for s in settings)}</tr>"
        for first, second in pairs
    )
    return _table(
        f"Difference of WER on {split}, % of the second", f'<tr><th class="words">arms</th>{heads}</tr>', body
    )


def _costs(rows: Sequence[dict[str, Any]], arms: Sequence[str]) -> str:
    """What each model took, once for each seed."""
    models: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["seed"] == "mean":
            setting = row["setting"] if row["arm"] in ONE_SETTING else "the table"
            models.setdefault((row["arm"], setting), row)
    body = "".join(
        f"<tr><th>{arm}</th><td class='words'>{setting}</td><td>{row['pretrain_updates']:,}</td>"
        f"<td>{row['updates']:,}</td><td>{row['flop']:.2e}</td><td>{row['rate']:g}</td></tr>"
        for (arm, setting), row in sorted(models.items(), key=lambda item: arms.index(item[0][0]))
    )
    words = "".join(f'<th class="words">{name}</th>' for name in ("arm", "trained at"))
    counts = ("updates of pre-training", "of fine-tuning", "FLOP of both", "rate of fine-tuning")
    head = f"<tr>{words}{''.join(f'<th>{name}</th>' for name in counts)}</tr>"
    return _table("What a model of each arm took", head, body)


def _table(caption: str, head: str, body: str) -> str:
    title = _text(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
    )
