"""What may differ from the run in a workdir, and what is refused by name."""

import copy
import json

import pytest

from sew_jax.errors import UserError
from sew_jax.training.resume import changes_since, earlier_record, earlier_rows

RECORD = {
    "config": {
        "seed": 0,
        "num_steps": 10,
        "data": "a",
        "optim": {"lr": 0.1},
        "mesh": {"data": -1},
        "input": {"batch_seconds": 6.0, "buckets": 2, "workers": 0},
    },
    "architecture": {},
    "parameters": 100,
    "data": {"utterances": 3, "sha256": "x"},
    "rows": {"16000": 4, "32000": 2},
}


def changed(path, value):
    record = copy.deepcopy(RECORD)
    item = record
    *folders, last = path.split("/")
    for name in folders:
        item = item[name]
    item[last] = value
    return record


@pytest.mark.parametrize(
    ("path", "value"), [("config/num_steps", 20), ("config/mesh/data", 4), ("config/input/workers", 2)]
)
def test_what_is_free(tmp_path, path, value):
    assert changes_since(tmp_path, RECORD, changed(path, value), "") == []


@pytest.mark.parametrize(
    ("path", "value", "allow", "message"),
    [
        ("config/seed", 1, "seed", r"config\.seed=0, this one has 1"),
        ("config/optim/lr", 0.2, "optim.lr", r"config\.optim\.lr=0\.1, this one has 0\.2"),
        ("config/optim/lr", 0.2, "optim", r"config\.optim\.lr=0\.1"),
        ("config/data", "b", "data", r"config\.data='a', this one has 'b'"),
        ("data/sha256", "y", "data", r"the data of .* have changed \(3 utterances then, 3 now, or other lengths\)"),
    ],
)
def test_what_is_refused_and_how_it_is_allowed(tmp_path, path, value, allow, message):
    with pytest.raises(UserError, match=message) as caught:
        changes_since(tmp_path, RECORD, changed(path, value), "")
    assert "--config.resume=" in str(caught.value)
    assert len(changes_since(tmp_path, RECORD, changed(path, value), f"{allow},num_steps")) == 1


def test_what_cannot_be_allowed(tmp_path):
    with pytest.raises(UserError, match="holds a model of 100 parameters, this one has 101"):
        changes_since(tmp_path, RECORD, changed("parameters", 101), "seed,optim,data,input")
    with pytest.raises(UserError, match=r"'optim\.rate' is no key"):
        changes_since(tmp_path, None, RECORD, "optim.rate")


def older(*paths):
    """The record of a run from before some keys existed."""
    record = copy.deepcopy(RECORD)
    record["config"]["mode"] = "pretrain"
    for path in paths:
        *folders, last = path.split("/")
        item = record
        for name in folders:
            item = item[name]
        item.pop(last, None)
    return record


def test_a_key_that_is_new_since_then_has_its_default(tmp_path):
    record = older()
    record["config"]["input"] |= {"speed": 0.0, "corpus_exponent": 1.0}
    assert changes_since(tmp_path, older(), record, "") == []
    record["config"]["input"]["speed"] = 0.1
    with pytest.raises(UserError, match=r"config\.input\.speed=0\.0, this one has 0\.1"):
        changes_since(tmp_path, older(), record, "")
    assert changes_since(tmp_path, older(), record, "input.speed") == ["input.speed was 0.0, is 0.1"]


def test_a_key_without_a_default_is_refused_by_name(tmp_path):
    """Nobody knows what the run was; and a key that this version lacks meant something."""
    for earlier, record in ((older("config/seed"), older()), (older(), older("config/seed"))):
        with pytest.raises(UserError, match=r"config\.seed=('no such key'|0), this one has (0|'no such key')"):
            changes_since(tmp_path, earlier, record, "")
        assert len(changes_since(tmp_path, earlier, record, "seed")) == 1


def test_a_field_of_the_model_that_is_new_since_then_has_its_default(tmp_path):
    earlier, now = older(), older()
    earlier["architecture"] = {"backbone": {"heads": 12}}
    now["architecture"] = {"backbone": {"heads": 12, "pool_ffn": False}, "head": {"negatives": 100}}
    assert changes_since(tmp_path, earlier, now, "") == []
    now["architecture"]["backbone"]["pool_ffn"] = True
    with pytest.raises(UserError, match=r"backbone\.pool_ffn=False then, True now"):
        changes_since(tmp_path, earlier, now, "")


def test_rows_are_kept_while_the_batch_is_the_same():
    assert earlier_rows(RECORD, RECORD["config"]) == {16000: 4, 32000: 2}
    assert earlier_rows(RECORD, changed("config/input/batch_seconds", 7.0)["config"]) is None
    assert earlier_rows(None, RECORD["config"]) is None


def test_a_model_that_has_changed_behind_the_config(tmp_path):
    other = changed("architecture/backbone", {"heads": 4, "remat": "none"})
    same = changed("architecture/backbone", {"heads": 2, "remat": "layers", "loop_layers": False})
    earlier = changed("architecture/backbone", {"heads": 2, "remat": "none"})
    assert changes_since(tmp_path, earlier, same, "") == []
    with pytest.raises(UserError, match=r"init_from gives is another .*backbone\.heads=2 then, 4 now"):
        changes_since(tmp_path, earlier, other, "")


def test_the_record_is_that_of_the_newest_checkpoint(tmp_path):
    for step, text in ((5, RECORD | {"checksums": {}}), (10, RECORD | {"checksums": {}, "parameters": 7})):
        (tmp_path / f"checkpoints/{step}/meta").mkdir(parents=True)
        (tmp_path / f"checkpoints/{step}/meta/metadata").write_text(json.dumps(text))
    (tmp_path / "checkpoints/12.orbax-checkpoint-tmp").mkdir()
    assert earlier_record(tmp_path)["parameters"] == 7
    (tmp_path / "checkpoints/10/meta/metadata").write_text("{")
    assert earlier_record(tmp_path)["parameters"] == 100
    (tmp_path / "checkpoints/5/meta/metadata").unlink()
    assert earlier_record(tmp_path) is None and earlier_record(tmp_path / "nowhere") is None
    (tmp_path / "checkpoints/10/meta/metadata").write_text('{"checksums": {}, "config": 1}')
    with pytest.raises(UserError, match="another kind of run"):
        earlier_record(tmp_path)
