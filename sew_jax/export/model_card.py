"""The README.md of an exported model: what it is, how it was made, what it reaches, how it is run."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

import sew_jax
from sew_jax.checkpoints.hf_config import Architecture
from sew_jax.checkpoints.pretrained import Pretrained, temperature_schedule
from sew_jax.compression import Compression
from sew_jax.data.labels import Labels
from sew_jax.data.vocabulary import VOCABULARY_FILE, Vocabulary
from sew_jax.evaluation.tradeoff import Point, ways
from sew_jax.export.stablehlo import PLATFORMS, WEIGHTS_FILE, Program
from sew_jax.files import write_whole
from sew_jax.models.config import BackboneConfig, ClassifierHeadConfig, CTCHeadConfig, FrameHeadConfig
from sew_jax.models.cost import count_macs
from sew_jax.rates import SAMPLE_RATE
from sew_jax.tables import markdown_table

_COSTED_SECONDS = 10
# Keys of a run's config that say how its model was made
_RECORDED = (
    "task",
    "init_from",
    "from_scratch",
    "data",
    "split",
    "num_steps",
    "seed",
    "dtype",
    "accumulate",
    "compression.names",
    "compression.squeeze",
    "compression.query_pool",
    "compression.kv_pool",
    "optim.lr",
    "optim.freeze",
    "mask.time_prob",
    "mask.channel_prob",
    "model.layerdrop",
    "input.batch_seconds",
)


def write_card(
    folder: Path,
    pretrained: Pretrained,
    state: str,
    settings: Sequence[Compression],
    points: Sequence[Point],
    use: str,
    library: str,
) -> None:
    """Writes README.md, with the front matter that model hubs read.

    Args:
      state: which state of the model was exported.
      points: of a trade-off; empty leaves word error rate and time out.
      use: how it is run, a section of Markdown.
      library: what runs it.
    """
    named = ", ".join(f"`{setting}`" for setting in settings)
    does, task = "Speech to hidden states", ""
    if isinstance(pretrained.head, CTCHeadConfig):
        does, task = "Speech to text (CTC)", "automatic-speech-recognition"
    elif pretrained.labels:
        does = f"Speech to labels of {pretrained.labels.unit}s ({pretrained.labels})"
        task = "audio-classification" if isinstance(pretrained.head, ClassifierHeadConfig) else ""
    tags = ["sew_jax", "speech", "audio", *([task] if task else [])]
    front = [f"library_name: {library}", *([f"pipeline_tag: {task}"] if task else []), "tags:"]
    backbone = pretrained.backbone
    parts = [
        "---\n" + "\n".join([*front, *(f"- {tag}" for tag in tags)]) + "\n---\n",
        f"# {Path(pretrained.name).name}, {named}\n",
        f"{does}, exported by sew_jax from `{pretrained.name}` ({state}): front end {backbone.frontend}, "
        f"{backbone.layers} layers of width {backbone.width}, {backbone.dtype} computation. A setting such as `s2q1k2` "
        "says what is saved: the transformer runs on every 2nd frame (squeeze), its queries are means over 1 frame, "
        "its keys and values over 2.\n",
        "## Use\n",
        use,
        "## Cost\n",
        _cost(backbone, settings),
    ]
    if points:
        title = points[0].measure.title
        parts += [f"## {title[:1].upper()}{title[1:]} and time\n", _reached(points)]
    parts += ["## How it was made\n", _made(pretrained, state)]
    write_whole(folder / "README.md", "\n".join(parts).encode())


def shared_record(record: dict[str, Any]) -> dict[str, Any]:
    """What a run's config.json says that concerns others: how the model was made, folders by their last names alone."""
    config: dict[str, Any] = {"mode": record["config"]["mode"], "compression": record["config"]["compression"]}
    for key in _RECORDED:
        *groups, name = key.split(".")
        value: Any = record["config"]
        for group in groups:
            value = value.get(group, {})
        if name in value:
            place = config
            for group in groups:
                place = place.setdefault(group, {})
            place[name] = value[name]
    if schedule := temperature_schedule(record):
        config["temperature"] = schedule
    for name in ("init_from", "data"):
        config[name] = ",".join(Path(part).name for part in config.get(name, "").split(","))
    return {name: record[name] for name in ("architecture", "parameters", "data") if name in record} | {
        "config": config
    }


def folder_use(symbols: Vocabulary | Labels | None) -> str:
    """How a folder of ours is used."""
    call = 'print(model.features("speech.flac", setting="s1q1k1").shape)'
    if isinstance(symbols, Labels):
        call = f'print(model.{symbols.method}("speech.flac", setting="s1q1k1"))'
    elif symbols:
        call = 'print(model.transcribe("speech.flac", setting="s1q1k1").text)'
    return f"""\
sew_jax loads the folder, from Python or as `--config.init_from=FOLDER`:

```python
import sew_jax

model = sew_jax.load("FOLDER")
{call}
```
"""


def joined(vocabulary: Vocabulary) -> str:
    """The Python expression that makes text of `path` and `symbols`."""
    silent = [i for i in range(len(vocabulary)) if vocabulary.is_silent(i)]
    said, case = f"symbols[i] for i in path if i not in {silent!r}", ".lower()" if vocabulary.lower_case else ""
    if vocabulary.delimiter is None:
        return f'" ".join({said}){case}'
    return f'"".join({said}).replace({vocabulary.delimiter!r}, " "){case}'


def programs_use(programs: Sequence[Program], vocabulary: Vocabulary, frame_samples: int) -> str:
    """How the programs of `stablehlo.write_programs` are run, which give a frame for so many samples."""
    first, frame_ms = programs[0], 1000 * frame_samples // SAMPLE_RATE
    files = [(p.file, str(p.setting), f"{p.offset} + {p.step} n") for p in programs]
    return f"""\
Each file is a StableHLO program (`jax.export`) for {", ".join(PLATFORMS)}; all take their weights from
`{WEIGHTS_FILE}`. Needed: `pip install jax numpy flatbuffers`, nothing of sew_jax.

{markdown_table(("program", "setting", "samples N, for any n from 1"), files)}
Input: the weights; `wave` (B, N) int16, mono at {SAMPLE_RATE} Hz, padded with anything; `length` (B,) int32, the
samples of each utterance. Any B of at least 1 and any such N: each pair that comes is compiled once, which takes longer
than to compute it, so pad what you have to a few lengths. Output: log-probabilities
(B, T, {len(vocabulary)}) float32, a frame each {frame_ms} ms, in the order of `{VOCABULARY_FILE}`; and
the frames (B,) int32 of each utterance, beyond which they mean nothing.

```python
import json
import wave

import jax
import jax.export
import numpy as np

weights = dict(np.load("{WEIGHTS_FILE}"))
with open("{first.file}", "rb") as file:
    program = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
with open("{VOCABULARY_FILE}", encoding="utf-8") as file:
    symbols = {{i: symbol for symbol, i in json.load(file).items()}}
with wave.open("speech.wav") as file:  # {SAMPLE_RATE} Hz, mono, 16 bit
    audio = np.frombuffer(file.readframes(file.getnframes()), np.int16)

longer = (-len(audio) + {first.offset}) % {first.step}  # the next length that there may be
batch, length = np.pad(audio, (0, longer))[None], np.array([len(audio)], np.int32)
log_probs, frames = jax.device_get(program(weights, batch, length))
path = log_probs[0, : frames[0]].argmax(-1)
path = path[np.diff(path, prepend=-1) != 0]  # a symbol that goes on is one symbol
print({joined(vocabulary)})
```
"""


def onnx_use(settings: Sequence[Compression], vocabulary: Vocabulary, kind: str) -> str:
    """How the files of `onnx_files.write_onnx` are run."""
    files = ", ".join(f"`{setting}.onnx`" for setting in settings)
    weights = {
        "float32": "float32, and so is the computation",
        "float16": "float16; the computation is in float32",
        "int8": "8 bits in the products of attention and feed-forward, whose input is rounded to 8 bits as it comes; "
        "all else is float32",
    }[kind]
    return f"""\
{files}: one graph for each setting. They share the weights in `weights.bin`, which must lie beside them: {weights}.

`python example.py speech.wav` prints the text; it needs `pip install onnxruntime numpy` alone. With OpenVINO:
`openvino.Core().compile_model("{settings[0]}.onnx", "CPU")`.

`transcribe.html` transcribes in a browser, where the audio stays: `python -m http.server` in this folder, then
<http://localhost:8000/transcribe.html>. It loads onnxruntime-web from a CDN, and says where another copy is named.

Input: `wave` (B, N) float32, mono at {SAMPLE_RATE} Hz, of which 1 is full scale, padded with anything; `length` (B,)
int64, the samples of each utterance. Any B and N. Output: `log_probs` (B, T, {len(vocabulary)}) float32, a frame each
20 ms, in the order of `{VOCABULARY_FILE}`; `frames` (B,) int64 of each utterance, beyond which they mean nothing.
"""


def transformers_use(architecture: Architecture, kind: str) -> str:
    """How a folder of Hugging Face's is run; `kind` is the class that it names."""
    ctc = isinstance(architecture.head, CTCHeadConfig)
    auto = "AutoModelForCTC" if ctc else "AutoModelForPreTraining" if architecture.head else "AutoModel"
    labels, frames = (isinstance(architecture.head, head) for head in (ClassifierHeadConfig, FrameHeadConfig))
    auto = "AutoModelForAudioClassification" if labels else "AutoModelForAudioFrameClassification" if frames else auto
    loader = "AutoProcessor" if ctc else "AutoFeatureExtractor"
    output = (
        f"logits, a frame each 20 ms, in the order of `{VOCABULARY_FILE}`"
        if ctc
        else "hidden states, a frame each 20 ms"
    )
    last = (
        "logits = model(**inputs).logits\nprint(processor.batch_decode(logits.argmax(-1))[0])"
        if ctc
        else "outputs = model(**inputs)"
    )
    if labels:
        output = "logits of the labels that `config.json` names"
        last = "print(model.config.id2label[int(model(**inputs).logits.argmax(-1))])"
    if frames:
        output = "logits of the labels that `config.json` names, a frame each 20 ms"
        last = "print([model.config.id2label[int(i)] for i in model(**inputs).logits[0].argmax(-1)])"
    return f"""\
`{kind}` of transformers computes it. Needed: `pip install torch transformers soundfile`.

Input: mono audio at {SAMPLE_RATE} Hz as floats, 1 is full scale. Output: {output}.

```python
import soundfile
from transformers import {auto}, {loader}

model, processor = {auto}.from_pretrained("."), {loader}.from_pretrained(".")
audio, rate = soundfile.read("speech.wav")  # {SAMPLE_RATE} Hz, mono
inputs = processor(audio, sampling_rate=rate, return_tensors="pt")
{last}
```
"""


def _cost(backbone: BackboneConfig, settings: Sequence[Compression]) -> str:
    macs = {s: count_macs(backbone, s, _COSTED_SECONDS * SAMPLE_RATE).total for s in (Compression(), *settings)}
    lines = [
        (str(s), f"{macs[s] / _COSTED_SECONDS / 1e9:.3g}", f"{macs[s] / macs[Compression()]:.2f}") for s in settings
    ]
    head = ("setting", "10^9 MACs for a second of audio", "to s1q1k1")
    return f"For an utterance of {_COSTED_SECONDS} s, without norms and the last layer:\n\n" + markdown_table(
        head, lines
    )


def _reached(points: Sequence[Point]) -> str:
    first = points[0]
    lines = [
        (
            point.setting,
            point.split or "all",
            way,
            f"{point.measure.of(point.wer):.2%}",
            "{:.2%} to {:.2%}".format(*point.measure.interval(point.wer_low, point.wer_high)),
            f"{point.cer if point.macro_f1 is None else point.macro_f1:.2%}",
            f"{point.relative_time:.2f}",
            f"{1 / point.rtf:.0f}",
        )
        for point, way in zip(points, ways(points), strict=True)
    ]
    sizes = [
        f"{split}: {point.utterances} utterances ({point.audio_seconds / 60:.1f} minutes"
        + (f", {point.words} words)" if point.measure.is_error else ")")
        for split, point in {point.split or "all": point for point in points}.items()
    ]
    second = "CER" if first.macro_f1 is None else "macro F1"
    head = ("setting", "split", "decoder", first.measure.name, "95 %", second, "time to s1q1k1", "times real time")
    engines = ", ".join(dict.fromkeys(str(point.engine) for point in points))
    intro = f"Measured on {first.device}, {engines}, with sew_jax itself; {'; '.join(sizes)}:\n\n"
    return intro + markdown_table(head, lines)


def _made(pretrained: Pretrained, state: str) -> str:
    lines = [
        ("exported by", f"sew_jax {sew_jax.__version__}{_commit()}, jax {jax.__version__}"),
        ("from", pretrained.name),
    ]
    lines += [("state", state), ("trained at", ", ".join(map(str, pretrained.trained)))]
    if pretrained.record:
        config = pretrained.record["config"]
        lines += [("mode", str(config["mode"]))]
        for key in _RECORDED:
            value = config
            for part in key.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value not in (None, "") and value is not False:
                lines.append((key, value if isinstance(value, str) else json.dumps(value)))
        data = pretrained.record.get("data") or {}
        if "utterances" in data:
            lines.append(("utterances", f"{data['utterances']} (SHA-256 of their list {data['sha256'][:12]})"))
    return markdown_table(("", "value"), lines)


def _commit() -> str:
    """Of the clone that this package lies in, where it lies in one."""
    root = Path(sew_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" (commit {done.stdout.strip()})" if done.returncode == 0 else ""
