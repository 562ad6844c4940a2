"""fairseq's own checkpoints (`.pt`) in Hugging Face's terms, so that `convert` need know one form only.

torch reads them, with `weights_only=True`: nothing in such a file can run code. A file that holds objects of
fairseq's, other than options and dictionaries, is therefore refused.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sew_jax.checkpoints.hf_match import spell
from sew_jax.checkpoints.hf_weights import FOLDED_WEIGHT
from sew_jax.data.text_files import read_text
from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.errors import UserError
from sew_jax.storage import is_file

# fairseq's part of a name -> transformers'; the first that matches is taken
_NAMES = [
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"^encoder\.upsample\.0\.", "encoder.upsample.projection."),
    (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"^(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
    (r"^quantizer\.vars$", "quantizer.codevectors"),
    (r"^final_proj\.", "project_hid."),
    (r"^proj\.", "lm_head."),
]
_PROJECTION = {
    "sew": [(r"^post_extract_proj\.", "feature_projection.")],
    "wav2vec2": [
        (r"^post_extract_proj\.", "feature_projection.projection."),
        (r"^layer_norm\.", "feature_projection.layer_norm."),
    ],
}
_FIRST = "feature_extractor.conv_layers.0.0.weight"
_STRIDES = {7: [5] + [2] * 6, 13: [5] + [2, 1] * 6}
# Heads of a pre-training that is not ours: HuBERT's targets, and SEW's (which transformers does not know either)
_OTHERS_HEADS = {"hubert": ("label_embs_concat", "final_proj."), "sew": ("quantizer.", "project_q.", "final_proj.")}


def to_hugging_face(checkpoint: Any, source: str) -> tuple[dict[str, Any], bool, dict[str, Any]]:
    """(config.json, whether the wave is normalised, tensors) of a checkpoint, of whose tensors names and shapes matter.

    Raises:
      UserError: it is of no model that we know, or says too little of itself.
    """
    options = _options(checkpoint, source)
    tensors = _without_prefix({spell(name): x for name, x in checkpoint["model"].items()})
    if any("relative_attention_bias" in name or ".grep_" in name for name in tensors):
        raise UserError(f"{source}: it is WavLM, of which Microsoft's own files are not read; give its hf: folder")
    family = "sew" if "encoder.upsample.0.weight" in tensors else "wav2vec2"
    if "label_embs_concat" in tensors:
        family = "hubert"
    others, rules = _OTHERS_HEADS.get(family, ()), _NAMES + _PROJECTION["sew" if family == "sew" else "wav2vec2"]
    tensors = {name if name.startswith(others) else _rename(name, rules): x for name, x in tensors.items()}
    return _config(family, options, tensors, source), bool(options.get("normalize", False)), tensors


def _without_prefix(tensors: dict[str, Any]) -> dict[str, Any]:
    """Those of the model alone, as pre-training names them, and of a CTC head `proj`; others keep their names.

    The model lies in `w2v_encoder.w2v_model.` of a CTC model, in `encoder.w2v_model.` of one with a decoder.
    """
    prefixes = [name.removesuffix(_FIRST) for name in tensors if name.endswith(_FIRST)]
    prefix = min(prefixes, key=len, default="")
    proj = prefix.removesuffix("w2v_model.") + "proj."
    bare = {name: x for name, x in tensors.items() if not name.startswith(prefix)}
    bare |= {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    if not prefix.endswith("w2v_encoder.w2v_model."):
        return bare
    return {f"proj.{name.removeprefix(proj)}" if name.startswith(proj) else name: x for name, x in bare.items()}


def read_dictionary(path: Path, symbols: int) -> Vocabulary:
    """The symbols of fairseq's `dict.ltr.txt` (one a line with its count), after four of its own, the blank first.

    Without the file it is LibriSpeech's, if the head has as many symbols.
    """
    if is_file(path):
        letters = [line.split()[0] for line in read_text(path).split("\n") if line.strip()]
        vocabulary = Vocabulary((*LETTERS[:4], *letters))
    else:
        vocabulary = Vocabulary(LETTERS)
    if len(vocabulary) != symbols:
        raise UserError(
            f"init_from: the head has {symbols} symbols, {len(vocabulary)} are known; put its dictionary at {path}"
        )
    return vocabulary


def _options(checkpoint: Any, source: str) -> dict[str, Any]:
    """The model's options, whichever of fairseq's ways they were written in; a fine-tuned model holds them nested."""
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("model"), Mapping):
        raise UserError(f"{source}: it is no fairseq checkpoint; it has no `model`")
    written = checkpoint.get("cfg") or checkpoint.get("args")
    if written is None:
        raise UserError(f"{source}: it has neither `cfg` nor `args`, which say what model it is")
    nested = _flat(written)
    inner = nested.pop("w2v_args", None)
    return nested | (_flat(inner) if inner is not None else {})


def _flat(written: Any) -> dict[str, Any]:
    written = written if isinstance(written, Mapping) else vars(written)
    if "model" not in written:
        return dict(written)
    return {
        **(written.get("task") or {}),
        **(written["model"] if isinstance(written["model"], Mapping) else vars(written["model"])),
    }


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def _config(family: str, options: dict[str, Any], tensors: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the shapes say, and the options where shapes are silent."""
    try:
        layers = 1 + max(int(m[1]) for name in tensors if (m := re.match(r"encoder\.layers\.(\d+)\.", name)))
        count = 1 + max(
            int(m[1]) for name in tensors if (m := re.match(r"feature_extractor\.conv_layers\.(\d+)\.", name))
        )
        convs = [tensors[f"feature_extractor.conv_layers.{i}.conv.weight"].shape for i in range(count)]
        ffn, width = tensors["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape
        direction = "encoder.pos_conv_embed.conv.weight_v"
        taps = tensors[direction if direction in tensors else FOLDED_WEIGHT].shape
    except (KeyError, ValueError) as error:
        raise UserError(f"{source}: it is no wav2vec 2.0, HuBERT or SEW model of fairseq's ({error})") from error
    config = {
        "model_type": family,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "num_attention_heads": options.get("encoder_attention_heads", 12),
        "num_conv_pos_embeddings": taps[2],
        "num_conv_pos_embedding_groups": width // taps[1],
        "conv_dim": [c[0] for c in convs],
        "conv_kernel": [c[2] for c in convs],
        "conv_stride": _STRIDES.get(count, []),
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in tensors,
        "feat_extract_norm": "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in tensors else "group",
        "hidden_act": options.get("activation_fn", "gelu"),
    }
    if family == "sew":
        config["squeeze_factor"] = tensors["encoder.upsample.projection.weight"].shape[0] // width
    else:
        config["do_stable_layer_norm"] = bool(options.get("layer_norm_first", False))
    if "lm_head.weight" in tensors:
        config |= {"architectures": ["ForCTC"], "vocab_size": tensors["lm_head.weight"].shape[0]}
    elif "quantizer.codevectors" in tensors and "project_q.weight" in tensors:
        groups, entries = options.get("latent_groups", 2), tensors["quantizer.codevectors"].shape[1]
        final, code_width = tensors["project_q.weight"].shape
        config |= {"architectures": ["ForPreTraining"], "num_codevector_groups": groups}
        config |= {
            "num_codevectors_per_group": entries // groups,
            "codevector_dim": code_width,
            "proj_codevector_dim": final,
        }
    else:
        config["architectures"] = ["Model"]
    return config
