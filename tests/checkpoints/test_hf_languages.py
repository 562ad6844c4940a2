"""A checkpoint with adapters, a head and a vocabulary for each language."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sew_jax.checkpoints.hf_folder import open_released, write_folder
from sew_jax.checkpoints.pretrained import open_origin, open_pretrained
from sew_jax.checks.check import check_config
from sew_jax.config_files import load_config
from sew_jax.errors import UserError
from tests.checkpoints.folders import RELEASED

MMS = RELEASED / "mms_ctc"


def test_a_language_brings_its_adapters_head_and_vocabulary():
    english, asked, swahili = (open_released(f"{MMS}{which}") for which in ("", "#eng", "#swh"))
    jax.tree.map(np.testing.assert_array_equal, english.parameters(), asked.parameters())
    assert english.vocabulary == asked.vocabulary and english.vocabulary.encode("WE") != []
    assert len(swahili.vocabulary) == 30 and swahili.vocabulary.decode(swahili.vocabulary.encode("jina")) == "jina"
    tensors = load_file(MMS / "adapter.swh.safetensors")
    params = swahili.parameters()
    np.testing.assert_array_equal(params["symbols"]["kernel"].T, tensors["lm_head.weight"])
    changed = [
        jax.tree_util.keystr(path)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(english.parameters()["backbone"]),
            jax.tree.leaves(params["backbone"]),
            strict=True,
        )
        if not np.array_equal(x, y)
    ]
    assert len(changed) == 2 * 6 and all("adapter" in path for path in changed)


def test_a_language_alone_goes_out_and_in_again(tmp_path):
    folder = open_released(f"{MMS}#swh")
    write_folder(tmp_path, folder.family, folder.architecture, folder.parameters(), folder.vocabulary)
    again = open_released(str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, again.parameters(), folder.parameters())
    assert again[1:4] == folder[1:4]


def test_languages_are_known_where_their_files_were_not_fetched(tmp_path):
    for name in ("config.json", "vocab.json", "tokenizer_config.json", "model.safetensors", "preprocessor_config.json"):
        if (MMS / name).exists():
            shutil.copy(MMS / name, tmp_path)
    with pytest.raises(UserError, match=r"has no adapter\.swa\.safetensors; it has eng, swh"):
        open_released(f"{tmp_path}#swa")


def test_a_run_goes_on_in_the_language_that_it_began_in():
    name = f"hf:{MMS}#swh"
    kept = open_origin(name, {"origin": open_pretrained(name).recorded()})
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ours, theirs = (origin.load(device)[1] for origin in (kept, open_pretrained(name)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    "name, message",
    [
        ("mms_ctc#xyz", "language: .*mms_ctc has no adapter.xyz.safetensors; it has eng, swh"),
        ("xlsr_ctc#swh", "it has no language's, so name none"),
    ],
)
def test_a_language_that_is_not_there(name, message):
    with pytest.raises(UserError, match=message):
        open_released(str(RELEASED / name))


def test_a_run_has_no_languages():
    config = load_config("evaluate.py")
    config.init_from, config.language = "runs/some", "swh"
    with pytest.raises(UserError, match="language: 'swh' is for checkpoints of many languages"):
        check_config(config)
