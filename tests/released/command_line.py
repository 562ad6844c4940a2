"""Every stored family from the command line: tuned at two settings, evaluated, and out again; run by hand.

  python -m tests.released.command_line [NAME ...]

Where transformers is installed, it loads each folder that comes out, at the factor that the checkpoint came with, and
computes with it.
"""

import importlib.util
import json
import sys
import tempfile
from pathlib import Path

from sew_jax import main as command
from tests.checkpoints.test_released import SMALL, forgetting_flags
from tests.released.inputs import waves
from tests.runs import make_corpus

RELEASED = Path(__file__).parent
NAMES = ["unispeech_ctc", "unispeech_sat", "data2vec", "wavlm", "wavlm_ctc", "mms_ctc", "mms_ctc#swh"]
NAMES += ["sew_d", "sew_d_ctc"]


def sew_jax(config: str, *options: str) -> None:
    sys.argv = ["main", f"--config=configs/{config}", *options]
    with forgetting_flags():
        assert command.main() == 0


def computed(folder: Path) -> str:
    if not importlib.util.find_spec("transformers"):
        return "transformers is not installed"
    import torch
    import transformers

    model, report = transformers.AutoModelForCTC.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        logits = model.eval()(torch.tensor(waves()[0])[None]).logits
    return f"{type(model).__name__} of transformers {transformers.__version__}, logits {tuple(logits.shape)}"


def follow(name: str, root: Path) -> str:
    data = f"--config.data={make_corpus(root / 'corpus')}"
    folder, _, language = name.partition("#")
    start = [f"--config.init_from=hf:{RELEASED / folder}", f"--config.language={language}"]
    vocabulary = "--config.vocabulary=auto" if language or "ctc" not in name else "--config.vocabulary="
    squeeze = json.loads((RELEASED / folder / "config.json").read_text()).get("squeeze_factor", 1)
    names = f"--config.compression.names=s1q1k1,s{max(squeeze, 2)}q2k1"
    tuned, table, again = (str(root / part) for part in ("tuned", "table", "again"))
    sew_jax("finetune.py", *start, data, *SMALL, names, "--config.num_steps=3", vocabulary, f"--workdir={tuned}")
    sew_jax("evaluate.py", f"--config.init_from={tuned}", data, "--config.repeats=1", f"--workdir={table}")
    sew_jax("export.py", f"--config.init_from={tuned}", f"--config.setting=s{squeeze}q1k1", f"--workdir={again}")
    settings = [row["setting"] for row in json.loads((Path(table) / "tradeoff.json").read_text())]
    return f"{name}: tuned and evaluated at {', '.join(settings)}; out again: {computed(Path(again))}"


if __name__ == "__main__":
    said = []
    for name in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as root:
            said.append(follow(name, Path(root)))
    print("\n".join(said))
