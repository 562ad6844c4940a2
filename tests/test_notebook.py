"""The notebook from its first cell to its last, without a browser.

Its code is plain Python, so that a process runs the cells one after the other as a kernel would, and the tests need no
Jupyter. What stands in is IPython's display alone: it notes what a reader would be shown.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import make_corpus

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "launch/colab.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
SMALL = ["--config.compression.names=s1q1k1", "--config.pretrain.num_steps=2", "--config.finetune.num_steps=2"]
SMALL += [f"--config.pretrain.model.{key}" for key in ("layers=1", "width=32", "ffn_width=32", "pos_kernel=5")]

KERNEL = """
import json, sys, types

class Shown:
    def __init__(self, text="", filename="", **options):
        self.text, self.size = text, len(open(filename, "rb").read()) if filename else 0

display = types.ModuleType("IPython.display")
for kind in ("Audio", "Image", "Markdown"):
    setattr(display, kind, type(kind, (Shown,), {}))
display.display = lambda shown: print("SHOWN", type(shown).__name__, shown.size, shown.text)
sys.modules["IPython"], sys.modules["IPython.display"] = types.ModuleType("IPython"), display
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(sys.stdin)):
    exec(compile(cell, f"cell {number}", "exec"), names)
"""


def run(**parameters):
    """Runs the code cells; the parameters are set behind their own cell, as papermill does."""
    cells = []
    for cell in CELLS:
        if cell["cell_type"] == "code":
            cells.append("".join(cell["source"]))
            if "parameters" in cell["metadata"].get("tags", []):
                unknown = [name for name in parameters if name not in cells[-1]]
                assert not unknown
                cells.append("".join(f"{name} = {value!r}\n" for name, value in parameters.items()))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "SEW_JAX_CACHE": str(Path(parameters["WORKDIR"]) / "cache")}
    environment |= {"JAX_COMPILATION_CACHE_DIR": os.environ["SEW_JAX_TEST_PROGRAMS"], "PYTHONUTF8": "1"}
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", KERNEL]
    return subprocess.run(
        command,
        input=json.dumps(cells),
        cwd=NOTEBOOK.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("model", ["a checkpoint", "the demo"])
def test_it_runs(model, tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    released = f"hf:{ROOT / 'tests/released/wav2vec2_ctc'}"
    chosen = {"CHECKPOINT": released, "SETTINGS": "s1q1k1,s2q1k1"} if model == "a checkpoint" else {"DEMO_FLAGS": SMALL}
    done = run(DATA=str(corpus), WORKDIR=str(tmp_path / "out"), **chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [line.split(" ", 3)[1:] for line in done.stdout.splitlines() if line.startswith("SHOWN")]
    assert [kind for kind, _, _ in shown[:2]] == ["Image", "Audio"] and all(
        int(size) > 1000 for _, size, _ in shown[:2]
    )
    assert 1 <= len(shown[2:]) <= 2 and all(kind == "Markdown" and "WER" in text for kind, _, text in shown[2:])
    measured = set(re.findall(r"test (\w+), greedy, jax float32: WER", done.stdout))
    assert measured == {"s1q1k1", *chosen.get("SETTINGS", "s1q1k1").split(",")} and "2-1-0000: ONE" in done.stdout
    assert (tmp_path / "out/demo/finetune").exists() == (model == "the demo")


def test_what_fails_is_said(tmp_path):
    done = run(
        CHECKPOINT=str(tmp_path / "nowhere"), DATA=str(make_corpus(tmp_path / "corpus")), WORKDIR=str(tmp_path / "out")
    )
    assert done.returncode == 1 and "error: init_from: " in done.stdout and "see above" in done.stderr


def test_it_is_stored_clean():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert "parameters" in code[0]["metadata"]["tags"]  # at the top
    assert all("!" != line[:1] and "%" != line[:1] for cell in code for line in cell["source"])
