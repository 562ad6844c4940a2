"""A trained model in a form that others load, with a card (README.md) that says what it is and how it is run.

  python -m sew_jax.main --config=configs/export.py --config.init_from=runs/finetune --config.format=stablehlo \\
    --config.setting=s1q1k1,s2q1k1 --config.tradeoff=runs/evaluate --workdir=runs/programs
  python -m sew_jax.main --config=configs/export.py --config.init_from=runs/finetune --config.format=onnx \\
    --config.setting=s1q1k1,s2q1k1 --workdir=runs/onnx
  python -m sew_jax.main --config=configs/export.py --config.init_from=runs/finetune --workdir=runs/export
  python -m sew_jax.main --config=configs/export.py --config.init_from=runs/finetune \\
    --config.setting=s2q1k1 --config.drop_tail=True
  python -m sew_jax.main --config=configs/export.py --config.init_from=runs/finetune --config.format=sew_jax \\
    --config.tradeoff=runs/evaluate --workdir=runs/model

`stablehlo` takes every model that writes text and every setting: a program for each setting, of any batch size and
length, for CPU, GPU and TPU, which runs where jax, numpy and flatbuffers are installed. Each is compared with the model
before it is written.

`onnx` takes those without merging or a rate, behind the waveform extractors and `logmel`, whose positions come from one
convolution, and no adapters: a graph for each setting, of any batch size and length, which share one file of weights;
ONNX Runtime and OpenVINO run them on a CPU. Needs the extra `onnx`.

`hf` is a folder that transformers loads: squeeze 1 becomes a Wav2Vec2 model, a larger one an SEW model; the log-mel
front end and pooling exist in neither.

`sew_jax` is a small folder that every command and `sew_jax.load` take in place of a workdir: weights, symbols, the
settings and what they reached. All take seconds on a CPU.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "export"
    config.init_from = ""  # workdir of a run (for stablehlo and onnx a finetune run), or hf:PATH
    config.language = ""  # of a checkpoint of many, such as swh of MMS; empty: the one it was saved with
    config.format = "hf"  # or stablehlo, onnx or sew_jax
    # A name, or for stablehlo and onnx several, joined by commas; empty: the budget's, or s1q1k1, or where that was not
    # trained the first that was (sew_jax: the table)
    config.setting = ""
    # 0.5 (of the time of s1q1k1), rtf=0.05 (seconds for a second of audio) or wer=12%: picks a point of `tradeoff`
    config.budget = ""
    # Workdir of an evaluate run, or its tradeoff.json, for the card; empty: a budget takes the one with the model
    config.tradeoff = ""
    # stablehlo: float32 or bfloat16; of a budget's points, but for onnx (float32, or int8 as `weights`), too
    config.dtype = ""  # empty: as in training
    config.weights = "float16"  # sew_jax and onnx: or float32; onnx: or int8
    config.drop_tail = False  # hf: SEW drops the last frames that fill no window; our models keep them
    return config
