"""The files of a Hugging Face folder: config.json, tensors (one file or shards), preprocessor and tokenizer.

What of its tensors is of use is found by their names, not by the class that config.json names.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors.numpy import save_file

from sew_jax.checkpoints import fairseq
from sew_jax.checkpoints.hf_config import Architecture, read_architecture, write_architecture
from sew_jax.checkpoints.hf_languages import adapter_files, with_language
from sew_jax.checkpoints.hf_match import Source, match_tensors
from sew_jax.checkpoints.hf_weights import flat_shapes, to_hugging_face
from sew_jax.checkpoints.tensor_files import HUB_PATTERNS, TensorFiles, load_pickle, open_tensors, torch_tensors
from sew_jax.data.labels import Labels
from sew_jax.data.text_files import read_text
from sew_jax.data.vocabulary import VOCABULARY_FILE, Vocabulary
from sew_jax.errors import UserError
from sew_jax.files import write_json
from sew_jax.models.config import ClassifierHeadConfig, CTCHeadConfig, FrameHeadConfig
from sew_jax.names import split_language
from sew_jax.rates import SAMPLE_RATE
from sew_jax.storage import exists, is_file, is_folder

_CONFIG, _PREPROCESSOR, _TENSORS = "config.json", "preprocessor_config.json", "model.safetensors"
_PROCESSOR = "processor_config.json"


class Released(NamedTuple):
    """A checkpoint in Hugging Face's form; its tensors are read when `parameters` is called."""

    name: str
    family: str
    architecture: Architecture  # the head is that of the tensors, None where there is none of ours
    vocabulary: Vocabulary | None  # of a CTC head
    no_text: str  # why what there is of a CTC head gives no text; else empty
    left_behind: list[str]  # modules of the checkpoint that have no place here
    sources: dict[str, Source]
    files: TensorFiles
    labels: Labels | None  # of a classifier

    def shapes(self) -> dict[str, Any]:
        """The tree of `parameters`, by shapes alone; what the checkpoint lacks is not in it."""
        return self._tree(flat_shapes(self.architecture.backbone, self.architecture.head))

    def parameters(self) -> dict[str, Any]:
        """Our parameter tree, float32 numpy; what the checkpoint lacks is not in it.

        Raises:
          UserError: a file has gone or is damaged, or a tensor holds NaN or infinity.
        """
        tensors = self.files.read({source.name for source in self.sources.values()})
        if broken := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
            raise UserError(
                f"init_from: {self.name} holds NaN or infinity in {len(broken)} tensors (first: {broken[0]}); its "
                "training failed, or the file is damaged: give an earlier checkpoint"
            )
        return self._tree({path: source.read(tensors[source.name]) for path, source in self.sources.items()})

    def _tree(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        return unflatten_dict({path: x for path, x in leaves.items() if path in self.sources}, sep="/")


def open_released(name: str) -> Released:
    """The checkpoint in a folder, of a name on the hub, or in a file of fairseq's (`.pt`).

    Of a folder or name with `#LANGUAGE` after it, the adapters, head and vocabulary are that language's.

    Raises:
      UserError: there is none, one that we cannot compute exactly, or one whose backbone is not whole.
    """
    if Path(name).suffix == ".pt":
        return _open_fairseq(Path(name).expanduser())
    name, language = split_language(name)
    path = _locate(name, language)
    config = _read_json(path / _CONFIG)
    preprocessor = _read_preprocessor(path)
    rate = preprocessor.get("sampling_rate") or SAMPLE_RATE
    if rate != SAMPLE_RATE:
        raise UserError(f"{path}: its audio is at {rate} Hz; only {SAMPLE_RATE} Hz can be loaded")
    normalize = preprocessor.get("do_normalize") is not False
    pad_id = config.get("pad_token_id")
    tensors = with_language(open_tensors(path), path, language) if language else open_tensors(path)
    return _open(
        str(path), config, normalize, tensors, lambda symbols: _read_vocabulary(path, symbols, pad_id, language)
    )


def _open_fairseq(path: Path) -> Released:
    config, normalize, tensors = fairseq.to_hugging_face(load_pickle(path), str(path))
    dictionary = path.with_name("dict.ltr.txt")
    return _open(
        str(path),
        config,
        normalize,
        torch_tensors(tensors),
        lambda symbols: fairseq.read_dictionary(dictionary, symbols),
    )


def _open(
    name: str,
    config: dict[str, Any],
    normalize: bool,
    files: TensorFiles,
    read_vocabulary: Callable[[int], Vocabulary],
) -> Released:
    family, named = config.get("model_type", ""), read_architecture(config, normalize, name)
    architecture, sources, left_behind = match_tensors(family, config, named, files.headers, name)
    vocabulary, no_text = None, ""
    if isinstance(architecture.head, CTCHeadConfig):
        try:
            vocabulary = read_vocabulary(architecture.head.symbols)
            head = dataclasses.replace(architecture.head, blank=vocabulary.blank)
            architecture = architecture._replace(head=head)
        except UserError as error:  # of use to who wants text of it, not to who gives another vocabulary
            no_text = str(error)
    elif "lm_head" in left_behind:
        no_text = f"its lm_head is no weight and bias on {architecture.backbone.width} features"
    chosen = architecture.head
    labels = None
    if isinstance(chosen, ClassifierHeadConfig):
        labels = _read_labels(config, chosen.labels)
    elif isinstance(chosen, FrameHeadConfig):
        names = _read_labels(config, chosen.frame_labels).names
        labels = Labels(tuple("_".join(name.split()) for name in names))
    return Released(name, family, architecture, vocabulary, no_text, left_behind, sources, files, labels)


def _read_labels(config: Mapping[str, Any], count: int) -> Labels:
    """Names by `id2label`; those that transformers gives where it has others than the head has rows."""
    named = config.get("id2label")
    names = tuple(named.get(str(i)) for i in range(count)) if isinstance(named, dict) and len(named) == count else ()
    whole = len(set(names)) == count and all(isinstance(name, str) for name in names)
    return Labels(names if whole else tuple(f"LABEL_{i}" for i in range(count)))


def write_folder(
    path: Path,
    family: str,
    architecture: Architecture,
    params: dict[str, Any],
    vocabulary: Vocabulary | None,
    labels: Labels | None = None,
) -> None:
    """Writes a folder that transformers loads: the inverse of `open_released`.

    Raises:
      UserError: the architecture of that family cannot express the model.
    """
    path.mkdir(parents=True, exist_ok=True)
    config = write_architecture(family, architecture)
    if labels:
        config |= {"id2label": {str(i): name for i, name in enumerate(labels.names)}}
        config |= {"label2id": {name: i for i, name in enumerate(labels.names)}}
    tensors = to_hugging_face(family, architecture, params)
    partial = path / f".{_TENSORS}.partial"
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, partial, metadata={"format": "pt"})
    partial.replace(path / _TENSORS)
    # with a vocabulary AutoProcessor must be told: not each model type has one of its own
    processor = {"processor_class": "Wav2Vec2Processor"} if vocabulary else {}
    write_json(path / _PREPROCESSOR, _preprocessor(architecture) | processor)
    if vocabulary:
        vocabulary.save(path)
    write_json(path / _CONFIG, config)


def _preprocessor(architecture: Architecture) -> dict[str, Any]:
    backbone = architecture.backbone
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": backbone.normalize_wave,
        # group norm averages over padding too, so those models are run without a mask
        "return_attention_mask": backbone.conv_norm == "layer",
    }


def _locate(name: str, language: str) -> Path:
    path = Path(name).expanduser()
    if is_folder(path):
        if not is_file(path / _CONFIG):
            below = sorted(p.parent for p in path.glob(f"*/{_CONFIG}"))
            instead = f"such as {below[-1]}" if below else "as `save_pretrained` writes it"
            raise UserError(f"init_from: {path} has no {_CONFIG}; give a folder that has, {instead}")
        return path
    if exists(path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"init_from: {name} is no folder; give a folder with {_CONFIG}, or a name on the hub")
    if not importlib.util.find_spec("huggingface_hub"):
        raise UserError(f"init_from: there is no folder {name}; to load a name from the hub, install huggingface_hub")
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    # of languages' files a name on the hub may have a thousand
    patterns = ["*.json", *(adapter_files(language) if language else ())]
    try:
        for tensors in HUB_PATTERNS:
            patterns.append(tensors)
            folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
            if any(folder.glob(tensors)):
                break
        return folder
    except Exception as error:  # whatever network or hub say
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"init_from: {name} is neither a folder nor to be had from the hub ({reason})") from error


def _read_preprocessor(path: Path) -> dict[str, Any]:
    """The feature extractor's options; transformers 5 keeps them in the processor's file."""
    if is_file(path / _PREPROCESSOR):
        return _read_json(path / _PREPROCESSOR)
    processor = _read_json(path / _PROCESSOR) if is_file(path / _PROCESSOR) else {}
    return processor.get("feature_extractor") or {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise UserError(f"init_from: {path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"init_from: {path} is no JSON object")
    return value


def _read_vocabulary(path: Path, symbols: int, pad_id: int | None, language: str) -> Vocabulary:
    vocabulary = Vocabulary.load(path / VOCABULARY_FILE, most=symbols, pad_id=pad_id, language=language)
    if len(vocabulary) > symbols:
        raise UserError(f"init_from: {path}/{VOCABULARY_FILE} names {len(vocabulary)} symbols, the head has {symbols}")
    return vocabulary.padded(symbols)
