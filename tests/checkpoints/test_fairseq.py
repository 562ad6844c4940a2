"""fairseq's names and options, against the same weights under transformers' names."""

import argparse
import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from sew_jax.checkpoints import fairseq
from sew_jax.checkpoints.hf_config import read_architecture
from sew_jax.checkpoints.hf_folder import open_released
from sew_jax.checkpoints.hf_match import match_tensors
from sew_jax.checkpoints.tensor_files import Header
from sew_jax.data.vocabulary import LETTERS
from sew_jax.errors import UserError
from sew_jax.models.config import ARCHITECTURE, CTCHeadConfig

RELEASED = Path(__file__).parents[1] / "released"
MODEL = {"encoder_attention_heads": 3, "layer_norm_first": False, "activation_fn": "gelu", "latent_groups": 2}


def as_fairseq(name):
    """The released tensors as fairseq's modules call them, prefixed as its fine-tuned models are."""
    tensors = load_file(RELEASED / name / "model.safetensors")
    layer_norm, sew, ctc = "xlsr" in name, "sew" in name, "ctc" in name
    renamed = {}
    for key, x in tensors.items():
        key = re.sub(r"^(wav2vec2|hubert|sew)\.", "", key)
        if key.startswith("lm_head."):
            renamed[key.replace("lm_head", "w2v_encoder.proj")] = x
            continue
        for theirs, fairseqs in [
            ("feature_projection.projection", "post_extract_proj"),
            ("feature_projection.layer_norm", "layer_norm"),
            *([("feature_projection", "post_extract_proj")] if sew else []),
            ("masked_spec_embed", "mask_emb"),
            ("pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv.0.weight_g"),
            ("pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv.0.weight_v"),
            ("pos_conv_embed.conv", "pos_conv.0"),
            ("upsample.projection", "upsample.0"),
            ("feed_forward.intermediate_dense", "fc1"),
            ("feed_forward.output_dense", "fc2"),
            ("attention.", "self_attn."),
            ("codevectors", "vars"),
            ("project_hid", "final_proj"),
        ]:
            key = key.replace(theirs, fairseqs)
        key = re.sub(r"(encoder\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm", key)
        key = re.sub(r"(conv_layers\.\d+)\.conv", r"\1.0", key)
        key = re.sub(r"(conv_layers\.\d+)\.layer_norm", r"\1.2.1" if layer_norm else r"\1.2", key)
        renamed[f"w2v_encoder.w2v_model.{key}" if ctc else key] = x
    return renamed


def checkpoint(name):
    tuned = "ctc" in name
    model = MODEL | {"layer_norm_first": "xlsr" in name}
    options = {"model": {"w2v_args": {"model": model}} if tuned else model, "task": {"normalize": True}}
    extra = (
        {"label_embs_concat": np.ones((5, 4)), "final_proj.weight": np.ones((4, 24))} if name == "hubert_ctc" else {}
    )
    return {"model": as_fairseq(name) | extra, "cfg": options}


@pytest.mark.parametrize(
    "name", ["wav2vec2", "wav2vec2_pretraining", "wav2vec2_ctc", "xlsr_ctc", "hubert_ctc", "sew_ctc"]
)
def test_the_same_weights_under_fairseqs_names(name):
    params, architecture, left = converted(checkpoint(name), name)
    released = open_released(str(RELEASED / name))
    ours, theirs = architecture.backbone, released.architecture.backbone
    fields = {*ARCHITECTURE, "upsample_factors"} - {"normalize_wave"}
    assert {f: getattr(ours, f) for f in fields} == {f: getattr(theirs, f) for f in fields}
    assert ours.normalize_wave and type(architecture.head) is type(released.architecture.head)
    assert left == (["final_proj", "label_embs_concat"] if name == "hubert_ctc" else [])
    jax.tree.map(np.testing.assert_array_equal, params, flatten_dict(released.parameters(), sep="/"))


def converted(given, name):
    """(Parameters by path, head, modules left behind) of a checkpoint of fairseq's."""
    config, normalize, tensors = fairseq.to_hugging_face(given, name)
    headers = {key: Header(x.shape, "float32") for key, x in tensors.items()}
    named = read_architecture(config, normalize, name)
    architecture, sources, left = match_tensors(config["model_type"], config, named, headers, name)
    return {path: source.read(tensors[source.name]) for path, source in sources.items()}, architecture, left


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "encoder."])
def test_a_wrapped_model(wrapper):
    """A CTC model is found with its head under what a trainer or a larger model puts before it."""
    given = checkpoint("xlsr_ctc")
    given["model"] = {wrapper + name: x for name, x in given["model"].items()}
    params, architecture, left = converted(given, "wrapped")
    released = open_released(str(RELEASED / "xlsr_ctc"))
    assert isinstance(architecture.head, CTCHeadConfig) and left == []
    jax.tree.map(np.testing.assert_array_equal, params, flatten_dict(released.parameters(), sep="/"))


def test_the_encoder_of_a_model_with_a_decoder():
    """Its projection leads to the decoder, not to symbols."""
    given = checkpoint("wav2vec2_ctc")
    model = {name.replace("w2v_encoder.", "encoder.", 1): x for name, x in given["model"].items()}
    given["model"] = model | {"decoder.layers.0.fc1.weight": np.ones((4, 4)), "decoder.layers.0.fc1.bias": np.ones(4)}
    params, architecture, left = converted(given, "seq2seq")
    released = open_released(str(RELEASED / "wav2vec2_ctc")).parameters()
    assert architecture.head is None and left == ["decoder", "encoder.proj"]
    jax.tree.map(np.testing.assert_array_equal, params, flatten_dict({"backbone": released["backbone"]}, sep="/"))


def test_weight_norm_of_any_age():
    given = checkpoint("wav2vec2_pretraining")
    expected, *_ = converted(given, "old")
    ends = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    new = {re.sub(r"weight_[gv]$", lambda m: ends[m[0]], name): x for name, x in given["model"].items()}
    jax.tree.map(np.testing.assert_array_equal, converted(given | {"model": new}, "new")[0], expected)
    gain, direction = (new.pop(f"encoder.pos_conv.0.{end}") for end in ends.values())
    new["encoder.pos_conv.0.weight"] = gain * direction / np.sqrt(np.square(direction).sum((0, 1)))
    folded = converted(given | {"model": new}, "folded")[0]
    assert folded.keys() == expected.keys()
    path = "backbone/encoder/pos_conv/weight_g"
    np.testing.assert_allclose(folded[path], expected[path], rtol=1e-6)


def test_older_options_are_a_namespace():
    given = checkpoint("wav2vec2_ctc")
    inner = argparse.Namespace(**MODEL)
    given["args"] = argparse.Namespace(w2v_args=inner, normalize=False)
    del given["cfg"]
    config, normalize, _ = fairseq.to_hugging_face(given, "old")
    assert config["num_attention_heads"] == 3 and not normalize


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("model"), "no fairseq checkpoint"),
        (lambda c: c.pop("cfg"), "neither `cfg` nor `args`"),
        (lambda c: c.update(model={"x": np.ones(2)}), "no wav2vec 2.0, HuBERT or SEW model"),
        (lambda c: c["model"].update({"encoder.layers.0.self_attn.grep_a": np.ones(1)}), "it: it is WavLM"),
    ],
)
def test_what_is_none_of_fairseqs(change, message):
    given = checkpoint("wav2vec2")
    change(given)
    with pytest.raises(UserError, match=message):
        fairseq.to_hugging_face(given, "it")


def test_its_dictionary(tmp_path):
    path = tmp_path / "dict.ltr.txt"
    assert fairseq.read_dictionary(path, 32).symbols == LETTERS
    path.write_text("| 90\nA 5\nÄ 1\n", encoding="utf-8")
    assert fairseq.read_dictionary(path, 7).symbols == (*LETTERS[:4], "|", "A", "Ä")
    with pytest.raises(UserError, match=r"the head has 9 symbols, 7 are known; put its dictionary at"):
        fairseq.read_dictionary(path, 9)


@pytest.mark.transformers
def test_a_file_is_read_without_running_it(tmp_path, monkeypatch):
    """Tensors, options and HuBERT's dictionaries are read, without fairseq; what would call code is refused."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    given = checkpoint("wav2vec2_ctc")
    given["model"] = {name: torch.tensor(x) for name, x in given["model"].items()}
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    dictionary = type("Dictionary", (), {"__module__": "fairseq.data.dictionary"})
    sys.modules["fairseq.data.dictionary"].Dictionary = dictionary
    labels = dictionary()
    labels.symbols = ["<s>", "<pad>"]
    torch.save(given | {"args": argparse.Namespace(seed=1), "task_state": {"dictionaries": [labels]}}, path)
    monkeypatch.undo()
    released = open_released(str(path))
    expected = open_released(str(RELEASED / "wav2vec2_ctc")).parameters()
    jax.tree.map(np.testing.assert_array_equal, released.parameters(), expected)

    torch.save(given | {"extra": Touch(tmp_path / "ran")}, path)
    with pytest.raises(UserError, match=r"model.pt cannot be read"):
        open_released(str(path))
    assert not (tmp_path / "ran").exists()


class Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
