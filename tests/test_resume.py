"""What may differ from the run in a workdir, and what is refused by name."""

import copy
import json

import pytest

from sew_jax.errors import UserError
from sew_jax.resume import changes_since, earlier_record, earlier_rows

RECORD = {
    "config": {
        "seed": 0, "num_steps": 10, "data": "a", "optim": {"lr": 0.1}, "mesh": {"data": -1},
        "input": {"batch_seconds": 6.0, "buckets": 2, "workers": 0},
    },
    "architecture": {},
    "parameters": 100,
    "data": {"utterances": 3, "sha256": "x"},
    "rows": {"16000": 4, "32000": 2},
}  # fmt: skip


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


def test_a_run_without_a_checkpoint_binds_no_one(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RECORD))
    (tmp_path / "checkpoints/5.orbax-checkpoint-tmp").mkdir(parents=True)
    assert earlier_record(tmp_path) is None
    (tmp_path / "checkpoints/5").mkdir()
    assert earlier_record(tmp_path) == RECORD
    for text in ("{", "[]", "{}", '{"config": 1, "data": {}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=r"config\.json cannot be read"):
            earlier_record(tmp_path)
