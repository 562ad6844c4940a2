"""Which stored tensors are which parameters of ours, by their names and shapes, whatever class wrote them.

The backbone may lie under any prefix, as trainers and wrappers give one; heads are taken where they fit, and what is
of no use here is left behind.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sew_jax.checkpoints.hf_config import Architecture, read_head
from sew_jax.checkpoints.hf_families import FAMILIES
from sew_jax.checkpoints.hf_weights import (
    FOLDED_WEIGHT,
    MASK_EMBEDDING,
    UNFOLD,
    flat_shapes,
    parameter_names,
)
from sew_jax.checkpoints.tensor_files import Header
from sew_jax.errors import UserError
from sew_jax.models.config import LABEL_HEADS, ClassifierHeadConfig, FrameHeadConfig, Head, PretrainHeadConfig

# What torch puts between modules: data parallel, compiled, sharded, rematerialised
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Parts of names that have changed: torch's of a weight-normed weight, transformers' (before 4.4) of the mask embedding
_SPELLINGS = {
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
    "mask_time_emb_vector": "masked_spec_embed",
}
_BACKBONE_PARTS = {"encoder", "feature_extractor", "feature_projection"}


class Source(NamedTuple):
    """The stored tensor that a parameter is read from, and what makes ours of it."""

    name: str
    read: Callable[[np.ndarray], np.ndarray]


class Match(NamedTuple):
    """A model with the head that its tensors have, where each parameter is from, and modules without use."""

    architecture: Architecture
    sources: dict[str, Source]
    left_behind: list[str]


def match_tensors(
    family: str, config: Mapping[str, Any], architecture: Architecture, headers: Mapping[str, Header], source: str
) -> Match:
    """Finds the parameters of a model among stored tensors.

    A mask embedding may be missing, as from models that never mask, and so may any part of a pre-training head. A CTC
    head is found where there is a whole one, with as many symbols as it has rows.

    Args:
      config: a `config.json`.
      architecture: what `read_architecture` makes of it, with the head that its class has.
      source: what messages call the checkpoint.

    Raises:
      UserError: a tensor of the backbone is missing, of another shape, or quantised; the message lists them.
    """
    stored = {spell(name): name for name in sorted(headers, key=len, reverse=True)}  # an unwrapped copy goes first
    backbone = {name for name, _ in parameter_names(family, architecture._replace(head=None)).values()}
    prefix = _find_prefix(stored, backbone, family)
    roots = _ancestors(prefix)
    within, around = _within(stored, [prefix]), _within(stored, roots)
    head_shapes = {name: headers[file_name].shape for name, file_name in around.items()}
    architecture = architecture._replace(head=_choose_head(family, config, architecture, head_shapes))

    places = _places(family, architecture, within)

    sources: dict[str, Source] = {}
    missing, misfits = [], []
    for path, (name, shape, read) in places.items():
        of_backbone = path.startswith("backbone/")
        file_name = (within if of_backbone else around).get(name)
        if file_name is None:
            if of_backbone and path != MASK_EMBEDDING:
                missing.append(prefix + name)
        elif headers[file_name].shape == shape and headers[file_name].is_float:
            sources[path] = Source(file_name, read)
        elif of_backbone:
            misfits.append(f"{file_name} {headers[file_name].dtype} {headers[file_name].shape}, not {shape}")
    problems = {"missing": missing, "of another shape or type": list(dict.fromkeys(misfits))}
    if mismatch := "; ".join(f"{len(names)} {what}: {_list(names, 20)}" for what, names in problems.items() if names):
        adapted = any(".lora_" in name or ".base_layer." in name for name in headers)
        mend = (
            "merge its adapters (LoRA) into the weights first"
            if adapted
            else "give config.json and weights of one model"
        )
        raise UserError(f"init_from: {source}: its backbone and config.json do not match: {mismatch}; {mend}")
    used = {place.name for place in sources.values()}
    left = [name for name in stored if stored[name] not in used]
    return Match(architecture, sources, _modules(left, roots))


class _Place(NamedTuple):
    """Where a parameter is to be found: its tensor's name and shape, and what makes ours of it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[np.ndarray], np.ndarray]


def _places(family: str, architecture: Architecture, stored: Container[str]) -> dict[str, _Place]:
    ours = flat_shapes(architecture.backbone, architecture.head)
    places = {
        path: _Place(name, layout.write(np.broadcast_to(np.float32(0), ours[path].shape)).shape, layout.read)
        for path, (name, layout) in parameter_names(family, architecture).items()
    }
    normed = places.keys() >= UNFOLD.keys()
    if normed and FOLDED_WEIGHT in stored and not all(places[path].name in stored for path in UNFOLD):
        shape = next(places[path].shape for path in UNFOLD if path.endswith("weight_v"))
        places |= {path: _Place(FOLDED_WEIGHT, shape, read) for path, read in UNFOLD.items()}
    return places


def spell(name: str) -> str:
    """A tensor's name without wrappers, in today's spelling."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    for old, new in _SPELLINGS.items():
        name = name.replace(old, new)
    return name


def _find_prefix(names: Iterable[str], backbone: set[str], family: str) -> str:
    """What stands before the most of the backbone's names; of two backbones, before that of the class's own name."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in backbone:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    own = f"{FAMILIES[family].prefix}."
    return max(counts, key=lambda prefix: (counts[prefix], prefix.endswith(own), -len(prefix), prefix), default=own)


def _ancestors(prefix: str) -> list[str]:
    """A prefix and what it begins with, the longest first: `a.b.`, `a.` and nothing."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts), -1, -1)]


def _within(stored: Mapping[str, str], roots: list[str]) -> dict[str, str]:
    """Names without the root that they stand under -> the file's; a longer root goes first."""
    return {
        name.removeprefix(root): stored[name] for root in reversed(roots) for name in stored if name.startswith(root)
    }


def _choose_head(
    family: str, config: Mapping[str, Any], architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]
) -> Head | None:
    """The head that is there: that of a class for pre-training by config.json alone, as its sizes are of use."""
    if isinstance(architecture.head, PretrainHeadConfig):
        return architecture.head
    if isinstance(architecture.head, LABEL_HEADS):
        return _classifier(architecture, shapes)
    symbols = shapes.get("lm_head.bias", ())
    if len(symbols) == 1 and shapes.get("lm_head.weight") == (*symbols, architecture.backbone.width):
        return read_head("ForCTC", {**config, "vocab_size": symbols[0]})
    pretraining = read_head("ForPreTraining", config)
    if not pretraining:
        return None
    names = [
        name
        for path, (name, _) in parameter_names(family, architecture._replace(head=pretraining)).items()
        if not path.startswith("backbone/")
    ]
    return pretraining if all(name in shapes for name in names) else None


def _classifier(
    architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]
) -> ClassifierHeadConfig | FrameHeadConfig | None:
    """The head of a class for labels of utterances or frames, as large as its tensors; None where they are others."""
    backbone, head, _ = architecture
    if len(shape := shapes.get("classifier.weight", ())) != 2:
        return None
    labels, width = shape
    wanted = {"classifier.weight": (labels, width), "classifier.bias": (labels,)}
    found: ClassifierHeadConfig | FrameHeadConfig
    if isinstance(head, ClassifierHeadConfig):
        found = dataclasses.replace(head, labels=labels, width=width)
        wanted |= {"projector.weight": (width, backbone.width), "projector.bias": (width,)}
    else:
        assert isinstance(head, FrameHeadConfig)
        found = dataclasses.replace(head, frame_labels=labels)
        wanted["classifier.weight"] = (labels, backbone.width)
    if head.layer_sum:
        wanted["layer_weights"] = (backbone.layers + 1,)
    is_whole = labels > 1 and all(shapes.get(name) == shape for name, shape in wanted.items())
    return found if is_whole else None


def _modules(names: Iterable[str], roots: list[str]) -> list[str]:
    """The modules of tensors: of the backbone as deep as `encoder.layers.3`, of heads the first part alone."""
    modules: dict[str, None] = {}
    for name in sorted(names):
        bare = name.removeprefix(next(root for root in roots if name.startswith(root)))
        first, *rest = bare.split(".")
        inner = first in _BACKBONE_PARTS and len(rest) > 1
        modules[".".join([first, *rest[:-1][:2]]) if inner else first] = None
    return list(modules)


def _list(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
