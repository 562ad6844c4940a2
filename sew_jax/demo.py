"""The whole story in one go: pre-train, fine-tune, the same from random weights for comparison, evaluate."""

import copy
import time
from pathlib import Path

from ml_collections import ConfigDict

from sew_jax.console import format_duration, say
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.files import FOLDER_HINT, write_json, writing_to
from sew_jax.training.train import train


def demo(config: ConfigDict, workdir: Path) -> None:
    """Leaves pretrain/, finetune/, scratch/ and the evaluation's files in the workdir. Each part resumes by itself.

    Args:
      config: `pretrain`, `finetune` and `evaluate` are the configs of those modes; keys beside them hold for all three.
    """
    begin = time.monotonic()
    parts = _parts(config, workdir)
    say("sew_jax demo: pre-training, fine-tuning, and word error rate against time at every setting")
    say("(its speech is synthetic: see README.txt beside it; the numbers say nothing about recorded speech)\n")
    say("1/4 Pre-training on audio alone; every update draws another compression setting")
    pretrained = train(parts["pretrain"], workdir / "pretrain")
    if pretrained.stopped:
        return
    say("\n2/4 Fine-tuning on transcripts")
    if train(parts["finetune"], workdir / "finetune").stopped:
        return
    say("\n3/4 The same fine-tuning from random weights, to see what pre-training was worth")
    if train(parts["scratch"], workdir / "scratch").stopped:
        return
    say("\n4/4 Evaluation of the random start, then of the pre-trained model")
    baseline = evaluate(parts["baseline"], workdir / "scratch")[0]
    say("")
    points = evaluate(parts["evaluate"], workdir)

    last = pretrained.metrics or {}
    say("")
    if "target_std" in last:
        say(
            f"pre-training ended with a loss of {last['loss']:.2f}, predictions that vary by "
            f"{last['prediction_std']:.2f} and targets by {last['target_std']:.2f}"
        )
    elif last:
        head = parts["pretrain"].head
        say(
            f"pre-training ended with contrastive accuracy {last['accuracy']:.2f} "
            f"(chance {1 / (1 + head.negatives):.2f}) and "
            f"code perplexity {last['code_perplexity']:.0f} of {head.codebooks * head.codes}"
        )
    say(
        f"WER at s1q1k1 on voices not heard in training: {points[0].wer:.1%} pre-trained, "
        f"{baseline.wer:.1%} from random weights"
    )
    say(f"all done in {format_duration(time.monotonic() - begin)}; look at {workdir}/tradeoff.html")
    summary = {"wer": points[0].wer, "wer_from_random_weights": baseline.wer}
    with writing_to(workdir, FOLDER_HINT):
        write_json(workdir / "summary.json", summary)


def _parts(config: ConfigDict, workdir: Path) -> dict[str, ConfigDict]:
    """The config of each part, with what the demo's own keys and the workdir decide."""
    parts = {name: copy.deepcopy(config[name]) for name in ("pretrain", "finetune", "evaluate")}
    for name, part in parts.items():
        part.data = config.data
        part.mesh = config.mesh
        if name != "evaluate":
            part.seed, part.dtype, part.compression = config.seed, config.dtype, config.compression
            part.log_every, part.checkpoint_every = config.log_every, config.checkpoint_every
    parts["finetune"].init_from = str(workdir / "pretrain")
    parts["scratch"] = copy.deepcopy(parts["finetune"])
    parts["scratch"].from_scratch = True
    parts["evaluate"].init_from = str(workdir / "finetune")
    parts["baseline"] = copy.deepcopy(parts["evaluate"])
    parts["baseline"].init_from = str(workdir / "scratch")
    parts["baseline"].settings = "s1q1k1"
    parts["baseline"].repeats = 1
    return parts
