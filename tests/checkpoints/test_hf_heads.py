"""Heads of released checkpoints: taken where they fit, else left behind and told."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from sew_jax.checkpoints.hf_folder import open_released
from sew_jax.checkpoints.hf_weights import parameter_shapes
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.config_files import load_config
from sew_jax.decoding.recognizer import load_recognizer
from sew_jax.errors import UserError
from sew_jax.models.config import CTCHeadConfig
from sew_jax.runtime.sharding import make_mesh
from sew_jax.training.finetuning import open_finetuning
from sew_jax.training.pretraining import open_pretraining
from sew_jax.training.task import warm_start_from
from tests.checkpoints.folders import RELEASED, ctc_folder, same_as_released, write

PRETRAINING = "wav2vec2_pretraining"


def pretraining_folder(folder, change=lambda tensors: None, kind="Wav2Vec2ForPreTraining"):
    tensors = load_file(RELEASED / PRETRAINING / "model.safetensors")
    change(tensors)
    return write(folder, tensors, source=PRETRAINING, architectures=[kind])


def drop_heads(tensors):
    for name in [name for name in tensors if not name.startswith("wav2vec2.")]:
        del tensors[name]


def test_a_whole_quantizer_is_taken_under_any_class(tmp_path):
    folder = pretraining_folder(tmp_path, kind="MyModel")
    assert same_as_released(folder, PRETRAINING).left_behind == []


def test_a_missing_quantizer_is_fresh_for_pretraining(tmp_path, capsys):
    """The sizes of config.json are kept; what is new is told."""
    folder = pretraining_folder(tmp_path, drop_heads)
    pretrained = open_pretrained(f"hf:{folder}")
    assert pretrained.head == open_released(str(RELEASED / PRETRAINING)).architecture.head
    assert pretrained.shapes().keys() == {"backbone"}
    fresh = jax.tree.map(lambda x: np.full(x.shape, 0.5), parameter_shapes(pretrained.backbone, pretrained.head))
    params = warm_start_from(pretrained)(fresh, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    theirs = open_released(str(RELEASED / PRETRAINING)).parameters()
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], theirs["backbone"])
    jax.tree.map(np.testing.assert_array_equal, params["quantizer"], fresh["quantizer"])
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert set(told.split("; new: ")[1].strip().split(", ")) == {
        "quantizer",
        "quantizer/logits",
        "project_target",
        "project_prediction",
    }


def test_without_a_class_for_pretraining_it_is_a_bare_backbone(tmp_path):
    assert open_released(str(pretraining_folder(tmp_path, drop_heads, kind="Custom"))).architecture.head is None


def test_parts_of_a_quantizer_that_fit_are_taken(tmp_path):
    def break_it(tensors):
        del tensors["quantizer.codevectors"]
        tensors["project_q.weight"] = np.ones((3, 3), np.float32)

    released = open_released(str(pretraining_folder(tmp_path, break_it)))
    shapes = flatten_dict(released.shapes(), sep="/")
    assert shapes.keys() == flatten_dict(released.parameters(), sep="/").keys()
    assert not shapes.keys() & {"quantizer/codebook", "project_target/kernel"} and "quantizer/logits/kernel" in shapes
    assert released.left_behind == ["project_q"]


def test_a_quantizer_beside_a_ctc_head_is_of_no_interest(tmp_path):
    def keep(tensors):
        pretraining = load_file(RELEASED / PRETRAINING / "model.safetensors")
        tensors |= {name: x for name, x in pretraining.items() if not name.startswith("wav2vec2.")}

    released = same_as_released(ctc_folder(tmp_path, keep), "wav2vec2_ctc")
    assert released.left_behind == ["project_hid", "project_q", "quantizer"]


def test_what_is_left_behind_and_new_is_told_in_one_line(tmp_path, capsys):
    def change(tensors):
        del tensors["wav2vec2.masked_spec_embed"]
        tensors |= {"classifier.weight": np.ones((4, 8), np.float32), "layer_weights": np.ones(3, np.float32)}

    folder = ctc_folder(tmp_path, change)
    load_recognizer(f"hf:{folder}", "", make_mesh(1, 1, jax.devices()[:1]))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("; left behind: classifier, layer_weights")

    pretrained = open_pretrained(f"hf:{folder}")
    fresh = pretrained.shapes()
    fresh["backbone"]["mask_embedding"] = jax.ShapeDtypeStruct((24,), np.float32)
    warm_start_from(pretrained)(fresh, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("; new: mask_embedding; left behind: classifier, layer_weights")


@pytest.mark.parametrize("architectures", [["Wav2Vec2ForSpeechThings"], []])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_a_ctc_head_under_any_class(prefix, architectures, tmp_path):
    def change(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    folder = ctc_folder(tmp_path, change, architectures=architectures, vocab_size=99)
    assert same_as_released(folder, "wav2vec2_ctc").left_behind == []


@pytest.mark.parametrize("symbols", [None, [*map(str, range(40)), "<pad>", "|"]])
def test_a_head_whose_vocabulary_does_not_fit_gives_no_text(symbols, tmp_path):
    """It is refused where its own symbols are wanted, before data are looked for, and of no interest elsewhere."""
    folder = ctc_folder(tmp_path)
    (folder / "vocab.json").unlink()
    if symbols:
        (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    released, why = open_released(str(folder)), "names 42 symbols" if symbols else "no such file"
    assert isinstance(released.architecture.head, CTCHeadConfig) and released.vocabulary is None
    with pytest.raises(UserError, match=f"gives no text: .*{why}"):
        load_recognizer(f"hf:{folder}", "", make_mesh(1, 1, jax.devices()[:1]))
    assert load_recognizer(f"hf:{folder}", "", make_mesh(1, 1, jax.devices()[:1]), need_text=False).vocabulary is None
    config = load_config("finetune.py")
    config.init_from, config.data = f"hf:{folder}", "/nowhere"
    with pytest.raises(UserError, match=rf"cannot be used \(.*{why}.*--config\.vocabulary=auto"):
        open_finetuning(config)
    config.vocabulary = "auto"
    with pytest.raises(UserError, match="/nowhere"):
        open_finetuning(config)


@pytest.mark.parametrize("change", [{"lm_head.bias": (7,)}, {"lm_head.weight": (32, 7)}, {"lm_head.bias": None}])
def test_half_a_ctc_head_is_left_behind(change, tmp_path):
    def break_it(tensors):
        for name, shape in change.items():
            tensors.pop(name)
            tensors |= {name: np.ones(shape, np.float32)} if shape else {}

    released = open_released(str(ctc_folder(tmp_path, break_it)))
    assert released.architecture.head is None and released.left_behind == ["lm_head"]
    with pytest.raises(UserError, match="gives no text: its lm_head is no weight and bias on 24 features"):
        load_recognizer(f"hf:{tmp_path}", "", make_mesh(1, 1, jax.devices()[:1]))


@pytest.mark.parametrize("mode", ["finetune", "pretrain"])
def test_a_backbone_that_is_not_whole_is_said_before_data_are_looked_for(mode, tmp_path):
    name = "wav2vec2.encoder.layers.0.feed_forward.output_dense.bias"
    folder = ctc_folder(tmp_path, lambda tensors: tensors.pop(name))
    config = load_config(f"{mode}.py")
    config.init_from, config.data = f"hf:{folder}", "/nowhere"
    with pytest.raises(UserError, match=f"1 missing: {name};") as error:
        (open_finetuning if mode == "finetune" else open_pretraining)(config)
    assert "\n" not in str(error.value)
