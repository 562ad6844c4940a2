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


def test_rows_are_kept_while_the_batch_is_the_same():
    assert earlier_rows(RECORD, RECORD["config"]) == {16000: 4, 32000: 2}
    assert earlier_rows(RECORD, changed("config/input/batch_seconds", 7.0)["config"]) is None
    assert earlier_rows(None, RECORD["config"]) is None


def test_a_model_that_has_changed_behind_the_config(tmp_path):
    other = changed("architecture/backbone", {"heads": 4, "remat": "none"})
    same = changed("architecture/backbone", {"heads": 2, "remat": "layers"})
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
