"""Which file a config's name means, and what it imports."""

import sys

import pytest

from sew_jax.config_files import FOLDER, find_config, importable, load_config
from sew_jax.errors import UserError

OWN = """
from ml_collections import ConfigDict

from configs import finetune
from configs.neighbour import STEPS


def get_config(recipe=""):
    config = finetune.get_config(recipe)
    config.num_steps = STEPS
    return config
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's config that imports a neighbour and one of the project's, in the folder where the process is."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "neighbour.py").write_text("STEPS = 7\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["demo.py", "configs/demo.py", "pretrain.py:base,fixed", "configs/finetune.py:"])
def test_ours_are_found_from_any_folder(name, own):
    path, colon, arguments = name.removeprefix("configs/").partition(":")
    assert find_config(name) == f"{FOLDER / path}{colon}{arguments}"


def test_a_file_that_is_there_goes_before_ours(own):
    (own / "demo.py").write_text("")
    (own / "configs").mkdir()
    (own / "configs/plan.py").write_text("")
    assert find_config("demo.py") == "demo.py" and find_config("configs/plan.py:base") == "configs/plan.py:base"
    assert find_config("plan.py") == str(FOLDER / "plan.py")


@pytest.mark.parametrize("name", ["nothing.py:base", "", "configs", "demo", "../configs"])
def test_what_is_missing_is_told_beside_what_there_is(name, own):
    with pytest.raises(UserError, match=r"does not exist; name a file, or one of benchmark\.py, demo\.py,.* study"):
        find_config(name)


def test_a_users_config_builds_on_its_neighbours_and_on_ours(own):
    assert (load_config("own.py").num_steps, load_config("own.py").optim.lr) == (7, 2e-3)
    assert (load_config("own.py:10h").num_steps, load_config("own.py:10h").optim.lr) == (7, 5e-5)
    with pytest.raises(UserError, match="finetune:3h is unknown"):
        load_config("own.py:3h")


@pytest.mark.parametrize(("name", "wrong"), [("evaluate.py:x", "too many"), ("strict.py", "missing a required")])
def test_arguments_that_a_config_does_not_take_or_lacks(name, wrong, own):
    (own / "strict.py").write_text("def get_config(recipe):\n    return recipe\n")
    with pytest.raises(UserError, match=f"config: {name} does not fit its get_config .{wrong}"):
        load_config(name)


def test_a_mistyped_key_is_an_error():
    config = load_config("pretrain.py")
    config.num_steps = 3
    with pytest.raises(AttributeError, match="num_steps"):
        config.num_step = 3


def test_other_modules_of_the_name_come_back(own, monkeypatch):
    """A program may have a package `configs` of its own, whose modules stay what they were."""
    (own / "theirs/configs").mkdir(parents=True)
    (own / "theirs/configs/finetune.py").write_text("OURS = False\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(own / "theirs")
    import configs.finetune as theirs

    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "configs"}
    assert load_config("own.py").num_steps == 7 and not theirs.OURS
    with pytest.raises(ZeroDivisionError), importable("own.py"):
        assert sys.modules["configs"] is not before["configs"]
        raise ZeroDivisionError
    after = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "configs"}
    assert after == before
    for name in before:
        monkeypatch.delitem(sys.modules, name)
