"""Released checkpoints against what transformers computed with them (`released/make.py`), and broken folders."""

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sew_jax.checkpoints.hf_config import Architecture, family_of, write_architecture
from sew_jax.checkpoints.hf_folder import open_released, write_folder
from sew_jax.checkpoints.hf_weights import model_of, to_hugging_face
from sew_jax.compression import Compression
from sew_jax.data.labels import Labels
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.errors import UserError
from sew_jax.models.backbone import Backbone
from sew_jax.models.config import ClassifierHeadConfig, CTCHeadConfig, PretrainHeadConfig
from sew_jax.models.frontend import frame_count
from sew_jax.models.masking import MaskedFrames
from sew_jax.models.pretrain import PretrainModel
from sew_jax.training import losses
from tests.released.inputs import LENGTHS, waves

RELEASED = Path(__file__).parents[1] / "released"
OUTPUTS = np.load(RELEASED / "outputs.npz")
RUNS = sorted({key.split("/")[0] for key in OUTPUTS.files})  # of folders, and of languages in them
NAMES = [name for name in RUNS if "#" not in name]


# transformers runs those with layer-norm extractors in padded batches, too; of data2vec's positions that changes some
PADDING_SAFE = {key.split("/")[0] for key in OUTPUTS.files if "/padded/" in key} - {"data2vec", "data2vec_ctc"}


def padded():
    """All utterances in one batch whose padding holds rubbish."""
    batch = np.full((len(LENGTHS), 7000), 9.0, np.float32)
    for row, wave in zip(batch, waves(), strict=True):
        row[: len(wave)] = wave
    return batch, np.array(LENGTHS)


def run(folder, wave, length):
    """The head's output and each layer's, on the host."""
    backbone, head, squeeze = folder.architecture
    ctc = isinstance(head, CTCHeadConfig | ClassifierHeadConfig)  # or a head of its form
    model = model_of(backbone, head) if ctc else Backbone(backbone)
    params = folder.parameters()

    def forward(params, wave, length):
        return model.apply(
            {"params": params if ctc else params["backbone"]},
            wave,
            length,
            Compression(squeeze),
            deterministic=True,
            capture_intermediates=lambda module, name: type(module).__name__ in ("Layer", "LayerNorm"),
        )

    output, captured = jax.jit(forward)(params, wave, length)
    captured = captured["intermediates"]["backbone"] if ctc else captured["intermediates"]
    encoder = captured["encoder"]
    layers = [encoder[f"layer_{i}"]["__call__"][0] for i in range(backbone.layers)]
    if backbone.pre_norm:  # transformers names the normalised output last
        layers[-1] = encoder["norm"]["__call__"][0]
    if ctc:
        head_out, frames = output
    else:
        head_out, frames = output.context_BxTxD, output.length_B
        if head:
            head_out = head_out @ params["project_prediction"]["kernel"] + params["project_prediction"]["bias"]
    return jax.device_get((head_out, layers, frames))


def assert_close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", RUNS)
def test_outputs_are_those_of_transformers(name):
    """Every layer's hidden states and the head's output, alone and in a padded batch; a classifier's is one frame."""
    folder = open_released(str(RELEASED / name))
    squeeze = folder.architecture.squeeze
    last = waves()[-1]
    runs = [(run(folder, last[None], np.array([len(last)])), [len(last)]), (run(folder, *padded()), LENGTHS)]
    for (head, layers, frames), lengths in runs:
        for row, length in enumerate(lengths):
            key, n = f"{name}/{length}", frames[row]
            assert_close(head[row, :n], OUTPUTS[f"{key}/head"])
            whole = frame_count(folder.architecture.backbone, length) // squeeze
            for number, layer in enumerate(layers, start=1):
                assert_close(layer[row, :whole], OUTPUTS[f"{key}/layer_{number}"])
            if len(lengths) > 1 and name in PADDING_SAFE:
                assert_close(head[row, :n], OUTPUTS[f"{name}/padded/head"][row, :n])


def test_the_pretraining_loss_is_that_of_transformers(monkeypatch):
    """The same masks, negatives and Gumbel noise: contrastive and diversity terms.

    transformers adds no feature penalty, which is why the totals are not compared.
    """
    name = "wav2vec2_pretraining"
    given = {k.split("/")[-1]: OUTPUTS[k] for k in OUTPUTS.files if k.startswith(f"{name}/pretraining")}
    folder = open_released(str(RELEASED / name))
    backbone, head, _ = folder.architecture
    wave = waves()[-1][None]
    index = given["masked"][None]
    mask = np.zeros((1, 19), bool)
    mask[0, given["masked"]] = True
    masked = MaskedFrames(index, np.ones_like(index, bool), mask)
    monkeypatch.setattr(jax.random, "gumbel", lambda key, shape: given["noise"].reshape(shape))
    model = PretrainModel(backbone, head)
    rngs = {name: jax.random.key(0) for name in ("gumbel", "dropout", "layerdrop")}

    def forward(params, *arguments):
        temperature = float(given["temperature"])
        return model.apply({"params": params}, *arguments, Compression(), temperature, deterministic=False, rngs=rngs)

    out = jax.jit(forward)(folder.parameters(), wave, np.array([wave.shape[1]]), masked)
    slot = np.searchsorted(given["masked"], given["negatives"])[None]
    quantized = out.quantized
    logits = losses.contrastive_logits(
        out.prediction_BxMxF, out.target_BxMxF, quantized.codes_BxMxG, slot, head.logit_temperature
    )
    contrastive, _ = losses.contrastive(logits, masked.valid_BxM)
    diversity = losses.diversity(quantized.probs_BxMxGxV, masked.valid_BxM, contrastive.weight)
    np.testing.assert_allclose(contrastive.sum, given["contrastive"], rtol=1e-5)
    np.testing.assert_allclose(diversity.sum, given["diversity"], rtol=1e-5)
    total = contrastive.sum + head.diversity_weight * diversity.sum
    np.testing.assert_allclose(total, given["loss"], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_out_again_bit_for_bit(name, tmp_path):
    folder = open_released(str(RELEASED / name))
    write_folder(tmp_path, folder.family, folder.architecture, folder.parameters(), folder.vocabulary, folder.labels)
    before, after = (one_spelling(load_file(path / "model.safetensors")) for path in (RELEASED / name, tmp_path))
    assert before.keys() == after.keys()
    for key in before:
        np.testing.assert_array_equal(before[key], after[key])
    again = open_released(str(tmp_path))
    assert again[1:4] == folder[1:4] and again.labels == folder.labels  # family, architecture, vocabulary
    given, written = (json.loads((path / "config.json").read_text()) for path in (RELEASED / name, tmp_path))
    same = given.keys() & written.keys() - {"ctc_zero_infinity", "ctc_loss_reduction"}
    assert {k: given[k] for k in same} == {k: written[k] for k in same}


def test_labels_are_those_of_the_config():
    assert open_released(str(RELEASED / "sew_labels")).labels == Labels(("ANGRY", "CALM", "VERY HAPPY"))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (dict(id2label={"0": "ANGRY"}), ("LABEL_0", "LABEL_1", "LABEL_2")),
        (dict(problem_type="multi_label_classification"), None),
        (dict(architectures=["Wav2Vec2ForXVector"]), None),
    ],
)
def test_a_head_without_names_and_one_that_is_none(changes, names, tmp_path):
    """Names are transformers' where the config's are not the head's; outputs that exclude no other are no labels."""
    folder = shutil.copytree(RELEASED / "wav2vec2_labels", tmp_path / "changed")
    edit(folder, **changes)
    released = open_released(str(folder))
    assert (released.labels and released.labels.names) == names
    assert ("classifier" in released.left_behind) == (names is None)


def test_layers_that_transformers_averages_at_another_rate(tmp_path):
    folder = shutil.copytree(RELEASED / "sew_labels", tmp_path / "changed")
    edit(folder, use_weighted_layer_sum=True)
    with pytest.raises(UserError, match="use_weighted_layer_sum is True; only False can be loaded of SEW"):
        open_released(str(folder))


def one_spelling(tensors):
    ends = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    return {k.replace(end := next((e for e in ends if e in k), ""), ends.get(end, "")): v for k, v in tensors.items()}


def test_both_spellings_of_weight_norm_and_shards(tmp_path):
    source, name = RELEASED / "wav2vec2_ctc", "model.safetensors"
    folder = shutil.copytree(source, tmp_path / "shards")
    tensors = one_spelling(load_file(folder / name))
    assert any(k.endswith("weight_g") for k in tensors)
    (folder / name).unlink()
    keys = sorted(tensors)
    parts = {"model-1.safetensors": keys[::2], "model-2.safetensors": keys[1::2]}
    for part, members in parts.items():
        save_file({k: tensors[k] for k in members}, folder / part)
    index = {"weight_map": {k: part for part, members in parts.items() for k in members}}
    (folder / f"{name}.index.json").write_text(json.dumps(index))
    jax.tree.map(
        np.testing.assert_array_equal, open_released(str(folder)).parameters(), open_released(str(source)).parameters()
    )


def edit(folder, file="config.json", **changes):
    value = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(value))


def retensor(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def unindex(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["model-00001-of-00001.safetensors"]}')


KEY = "encoder.layers.1.attention.q_proj.bias"
BROKEN = {
    "another model": (
        lambda f: edit(f, model_type="wav2vec2-bert"),
        "'wav2vec2-bert' cannot be loaded; it must be one of",
    ),
    "adapters": (lambda f: edit(f, add_adapter=True), "add_adapter is True; only False"),
    "another activation": (lambda f: edit(f, hidden_act="relu"), "hidden_act is 'relu'"),
    "a list for a number": (lambda f: edit(f, hidden_size=[24]), r"hidden_size=\[24\], which should be like 768"),
    "other convolutions": (lambda f: edit(f, conv_kernel=[9, 3, 3, 3, 3, 2, 2]), "no known extractor"),
    "another rate": (lambda f: edit(f, "preprocessor_config.json", sampling_rate=8000), "8000 Hz"),
    "cut off": (cut, "model.safetensors cannot be read"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "has no weights: none of model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config of text": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "a key missing": (lambda f: retensor(f, lambda t: t.pop(f"wav2vec2.{KEY}")), f"1 missing: wav2vec2.{KEY};"),
    "another shape": (
        lambda f: retensor(f, lambda t: t.update({f"wav2vec2.{KEY}": np.ones(2)})),
        rf"of another shape or type: wav2vec2.{KEY} float64 \(2,\), not \(24,\)",
    ),
    "quantised": (
        lambda f: retensor(f, lambda t: t.update({f"wav2vec2.{KEY}": np.ones(24, np.int8)})),
        rf"of another shape or type: wav2vec2.{KEY} I8 \(24,\)",
    ),
    "an index of another kind": (unindex, r"index\.json cannot be read .*; it must map tensors to files"),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_folder_is_named_in_one_line(damage, tmp_path):
    folder = shutil.copytree(RELEASED / "wav2vec2_ctc", tmp_path / "broken")
    change, message = BROKEN[damage]
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        open_released(str(folder))  # before anything is read
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(squeeze=2), "its squeeze factor is above 1"),
        (dict(backbone=dict(frontend="logmel")), "model.frontend is logmel"),
        (dict(head=PretrainHeadConfig(projection="mlp")), "head.projection is mlp"),
    ],
)
def test_what_wav2vec2_cannot_express(changes, message):
    architecture = open_released(str(RELEASED / "wav2vec2_ctc")).architecture
    backbone = dataclasses.replace(architecture.backbone, **changes.pop("backbone", {}))
    with pytest.raises(UserError, match=message):
        write_architecture("wav2vec2", architecture._replace(backbone=backbone, **changes))


@pytest.mark.parametrize(
    ("name", "squeeze", "message"),
    [
        ("sew_d_ctc", 2, r"SEWD cannot express this model, since model.rel_unit is not the squeeze factor 2"),
        ("sew_d_ctc", 1, r"SEWD cannot express this model, since its squeeze factor is 1"),
        ("wavlm_ctc", 2, r"SEW cannot express this model, since"),
    ],
)
def test_no_class_measures_distances_in_another_unit(name, squeeze, message):
    """What transformers would compute of such a folder, in silence, is something else."""
    folder = open_released(str(RELEASED / name))
    assert family_of(folder.architecture.backbone, folder.architecture.squeeze) == folder.family
    backbone = dataclasses.replace(folder.architecture.backbone, upsample_factors=(squeeze,))
    with pytest.raises(UserError, match=message):
        write_architecture(family_of(backbone, squeeze), Architecture(backbone, folder.architecture.head, squeeze))


def test_other_upsamplers_stay_behind():
    folder = open_released(str(RELEASED / "sew_ctc"))
    params = folder.parameters()
    before = to_hugging_face("sew", folder.architecture, params)
    params["backbone"]["encoder"]["upsample_2"] = {"linear": {"kernel": np.ones((24, 48)), "bias": np.ones(48)}}
    assert to_hugging_face("sew", folder.architecture, params).keys() == before.keys()


def test_a_name_on_the_hub(tmp_path, monkeypatch):
    """Where huggingface_hub is installed, it is asked for the folder of a name."""
    with pytest.raises(UserError, match=r"no folder some/model; to load a name from the hub, install huggingface_hub"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        open_released("some/model")
    monkeypatch.undo()
    package = tmp_path / "huggingface_hub"
    package.mkdir()
    body = "assert (name, revision) in asked\n    patterns.append(list(allow_patterns))"
    asked = [("some/model", None), ("some/model", "v1")]
    (package / "__init__.py").write_text(
        f"asked, patterns = {asked}, []\ndef snapshot_download(name, revision, allow_patterns):\n    {body}\n"
        f"    return {str(RELEASED / 'sew')!r}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert open_released("some/model").family == "sew" and open_released("some/model@v1").family == "sew"
    asked_for = importlib.import_module("huggingface_hub").patterns  # nothing that is not read
    assert len(asked_for) == 2 and not any("pytorch_model*.bin" in patterns for patterns in asked_for)
    with pytest.raises(UserError, match="neither a folder nor to be had from the hub"):
        open_released("some/model@v2")


def test_a_checkpoint_that_never_masks_lacks_the_mask_embedding(tmp_path):
    folder = shutil.copytree(RELEASED / "sew_ctc", tmp_path / "unmasked")
    retensor(folder, lambda tensors: tensors.pop("sew.masked_spec_embed"))
    assert "mask_embedding" not in open_released(str(folder)).parameters()["backbone"]


def test_null_is_the_default(tmp_path):
    folder = shutil.copytree(RELEASED / "wav2vec2_ctc", tmp_path / "null")
    edit(folder, vocab_size=None, num_negatives=None)
    assert open_released(str(folder)).architecture == open_released(str(RELEASED / "wav2vec2_ctc")).architecture


@pytest.mark.parametrize(
    ("name", "changes"),
    [("sew_d", {"hidden_act": "gelu", "pos_att_type": ["c2p", "p2c"]}), ("wav2vec2", {"hidden_act": "gelu_python"})],
)
def test_other_spellings_of_the_same_mathematics(name, changes, tmp_path):
    folder = shutil.copytree(RELEASED / name, tmp_path / name)
    edit(folder, **changes)
    assert open_released(str(folder)).architecture == open_released(str(RELEASED / name)).architecture


def test_a_head_that_is_none_is_named_with_its_checkpoint(tmp_path):
    folder = shutil.copytree(RELEASED / "wav2vec2_pretraining", tmp_path / "odd")
    edit(folder, num_codevector_groups=3)
    with pytest.raises(UserError, match=r"odd: its config\.json describes no head \(.* is no multiple of"):
        open_released(str(folder))


def test_values_that_are_no_numbers_are_named(tmp_path):
    folder = shutil.copytree(RELEASED / "wav2vec2_ctc", tmp_path / "nan")
    retensor(folder, lambda tensors: tensors[f"wav2vec2.{KEY}"].fill(np.nan))
    with pytest.raises(UserError, match=rf"NaN or infinity in 1 tensors \(first: wav2vec2.{KEY}\)"):
        open_released(str(folder)).parameters()


def test_adapters_that_are_not_merged_are_named(tmp_path):
    folder = shutil.copytree(RELEASED / "wav2vec2_ctc", tmp_path / "lora")
    name = "wav2vec2.encoder.layers.0.attention.q_proj"
    retensor(folder, lambda t: t.update({f"{name}.base_layer.weight": t.pop(f"{name}.weight")}))
    with pytest.raises(UserError, match=r"1 missing: .*q_proj.weight; merge its adapters \(LoRA\)"):
        open_released(str(folder))


def test_a_folder_of_a_training_names_its_checkpoints(tmp_path):
    shutil.copytree(RELEASED / "wav2vec2_ctc", tmp_path / "checkpoint-500")
    with pytest.raises(UserError, match=r"has no config.json; give a folder that has, such as .*checkpoint-500"):
        open_released(str(tmp_path))


def test_a_byte_order_mark_is_passed_over(tmp_path):
    folder = shutil.copytree(RELEASED / "wav2vec2_ctc", tmp_path / "bom")
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    assert open_released(str(folder)).architecture == open_released(str(RELEASED / "wav2vec2_ctc")).architecture


def test_the_processors_file_of_transformers_5(tmp_path):
    folder = shutil.copytree(RELEASED / "wav2vec2", tmp_path / "five")
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": preprocessor}))
    assert open_released(str(folder))[1:4] == open_released(str(RELEASED / "wav2vec2"))[1:4]


def test_added_tokens_beyond_the_head_and_symbols_without_a_name(tmp_path):
    folder = shutil.copytree(RELEASED / "wav2vec2_ctc", tmp_path / "tokens")
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": 32}))
    assert len(open_released(str(folder)).vocabulary) == 32
    vocabulary = open_released(str(folder)).vocabulary.padded(34)
    vocabulary.save(tmp_path)
    again = Vocabulary.load(tmp_path / "vocab.json")
    assert again == vocabulary and again.decode([33, vocabulary.symbols.index("A"), 32]) == "A"
