"""What a study leaves: a row for each model, setting, split and seed, comparisons, verdicts, and the files of them."""

import csv
import datetime
import io
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

import sew_jax
from sew_jax.console import command_line, say
from sew_jax.files import WORKDIR_HINT, write_json, write_whole, writing_to
from sew_jax.metrics.bootstrap import wer_interval
from sew_jax.names import split_names
from sew_jax.study.page import write_page
from sew_jax.study.plan import Plan, finetune_key
from sew_jax.study.plot import plot_study
from sew_jax.study.results import Results, chosen_rate
from sew_jax.study.verdicts import Scores, Table, compare_arms, compare_settings, verdict_a, verdict_b, verdict_c

_ABOUT = ("arm", "setting", "seed", "split")
_ERRORS = ("wer", "wer_low", "wer_high", "cer", "errors", "words")
COLUMNS = (*_ABOUT, *_ERRORS, "rate", "pretrain_updates", "updates", "flop", "relative_time", "relative_macs")


def write_report(config: ConfigDict, plan: Plan, results: Results, workdir: Path) -> None:
    """Writes study.json, study.csv, study.png and study.html, and says the verdicts."""
    table = collect(config, plan, results)
    # the first of a setting: the best path, by the first run time
    time = {(row["split"], row["setting"]): row for row in reversed(results["time"]["rows"])}
    tests, settings = split_names(config.split), [str(setting) for setting in plan.settings]
    rows = make_rows(table, time)
    comparisons = [c for split in tests for c in compare_arms(table, split, settings)]
    steps, verdicts = [], []
    for split in tests:
        order = sorted(settings, key=lambda s: time[split, s]["relative_time"])
        found = compare_settings(table, split, order)
        steps += found
        mine = [c for c in comparisons if c.split == split]
        verdicts += [verdict_a(mine, split), verdict_b(mine, split), verdict_c(found, split)]
    about = _about(config, plan, results)
    plot = plot_study(rows, tests)
    value = {
        "about": about,
        "config": config.to_dict(),
        "rows": rows,
        "comparisons": [_finite(c._asdict()) for c in comparisons],
        "steps": [_finite(c._asdict()) for c in steps],
        "verdicts": [v._asdict() for v in verdicts],
    }
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with writing_to(workdir, WORKDIR_HINT):
        write_json(workdir / "study.json", value)
        write_whole(workdir / "study.csv", text.getvalue().encode())
        write_whole(workdir / "study.png", plot)
        write_page(workdir / "study.html", about, rows, comparisons, verdicts, plot, settings, tests)
    for verdict in verdicts:
        say(f"{verdict.claim} on {verdict.split}: {verdict.verdict}. {verdict.text} ({verdict.numbers})")


def collect(config: ConfigDict, plan: Plan, results: Results) -> Table:
    """The scores of each arm, split and setting, of all seeds at the rate that was chosen."""
    splits = (config.dev_split, *split_names(config.split))
    table: Table = {}
    for model in plan.models:
        rate = chosen_rate(results, model, plan.seeds[0], plan.rates, config.dev_split)
        runs = []
        for seed in plan.seeds:
            tried = rate if seed == plan.seeds[0] else None
            tuned = results[finetune_key(model, seed, tried)]
            pretrained = results[f"{model.source}/{seed}/pretrain"] if model.source else {"updates": 0, "flop": 0.0}
            runs.append((tuned, pretrained))
        for split in splits:
            for setting in map(str, model.table):
                scores = [
                    next(s for s in tuned["scores"] if (s["split"], s["setting"]) == (split, setting))
                    for tuned, _ in runs
                ]
                tuned, pretrained = runs[0]
                table[model.arm, split, setting] = Scores(
                    np.array([s["errors"] for s in scores], np.int64),
                    np.array([s["character_errors"] for s in scores], np.int64),
                    np.array(tuned["splits"][split]["words"], np.int64),
                    np.array(tuned["splits"][split]["characters"], np.int64),
                    plan.seeds,
                    [t["rate"] for t, _ in runs],
                    {
                        "pretrain_updates": pretrained["updates"],
                        "updates": tuned["updates"],
                        "flop": pretrained["flop"] + tuned["flop"],
                    },
                )
    return table


def make_rows(table: Table, time: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each arm, setting, split and seed, and one of their mean; time and MACs are relative to s1q1k1."""
    rows = []
    for (arm, split, setting), scores in table.items():
        timed = time.get((split, setting), {})
        cost = {key: timed.get(key, "") for key in ("relative_time", "relative_macs")} | scores.cost
        about = {"arm": arm, "setting": setting, "split": split}
        for i, seed in enumerate(scores.seeds):
            rows.append(about | _numbers(scores, [i]) | {"seed": seed, "rate": scores.rates[i]} | cost)
        rows.append(
            about | _numbers(scores, range(len(scores.seeds))) | {"seed": "mean", "rate": scores.rates[0]} | cost
        )
    return [{key: row[key] for key in COLUMNS} for row in rows]


def _numbers(scores: Scores, of: Sequence[int]) -> dict[str, Any]:
    """Errors of some seeds, on average."""
    errors_U, count = scores.errors_SxU[of].sum(0), len(of)
    low, high = wer_interval(errors_U, count * scores.words_U)
    return {
        "wer": float(scores.wer_S[of].mean()),
        "wer_low": low,
        "wer_high": high,
        "cer": float(scores.cer_S[of].mean()),
        "errors": float(errors_U.sum()) / count,
        "words": int(scores.words_U.sum()),
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinite numbers."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _about(config: ConfigDict, plan: Plan, results: Results) -> dict[str, str]:
    """What was run, and where."""
    stages = [stage for stage in plan.stages if stage.updates]
    timed, hours = results["time"]["rows"][0], sum(results[stage.key]["seconds"] for stage in stages) / 3600
    tried = ", ".join(f"{rate:g}" for rate in plan.rates)
    rates = f"{tried}: each model's chosen by WER on {config.dev_split} with seed {plan.seeds[0]}"
    updates = f"{config.pretrain.num_steps:,} in pre-training, {config.finetune.num_steps:,} in fine-tuning"
    return {
        "data": f"fine-tuned and tested on {config.data}, pre-trained on {config.pretrain_data or config.data}",
        "arms": f"{len(stages)} runs, seeds {', '.join(map(str, plan.seeds))}; equal {config.equal}",
        "updates": f"of the stochastic arm: {updates}",
        "table": " ".join(map(str, plan.table)),
        "rates": rates if plan.rates else f"{config.finetune.optim.lr:g}, the recipe's own",
        "checkpoint": _checkpoint(config),
        "decoding": "greedy, without a language model",
        "device": f"{timed['device']}, {timed['dtype']}; {hours:.1f} h since the last start of each run",
        "versions": f"sew_jax {sew_jax.__version__}, jax {jax.__version__}, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command_line("study from Python"),
    }


def _checkpoint(config: ConfigDict) -> str:
    tuning = config.finetune.eval
    return f"of fine-tuning: the best by WER on {config.dev_split}" if tuning.split and tuning.keep_best else "the last"
