"""Where compiled programs are kept: a folder that only this user can write to."""

import os

import jax
import pytest

from sew_jax.files import cache_folder
from sew_jax.runtime import programs
from sew_jax.runtime.programs import belongs_to_us_alone, share_programs


@pytest.fixture
def folder(tmp_path):
    """Below folders that are safe; pytest's own are."""
    path = tmp_path / "run/programs"
    path.mkdir(parents=True)
    for each in (path, path.parent, tmp_path):
        each.chmod(0o755)
    return path


def test_a_folder_of_ones_own(folder):
    assert belongs_to_us_alone(folder)


@pytest.mark.parametrize("mode", [0o757, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to(folder, mode):
    folder.chmod(mode)
    assert not belongs_to_us_alone(folder)


def test_a_folder_that_others_may_replace(folder):
    """Whoever may write to the folder above can move this one away; not where it is sticky, as /tmp is."""
    folder.parent.chmod(0o777)
    assert not belongs_to_us_alone(folder)
    folder.parent.chmod(0o1777)
    assert belongs_to_us_alone(folder)


def test_a_link_is_judged_by_where_it_leads(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert belongs_to_us_alone(tmp_path / "link")
    folder.chmod(0o777)
    assert not belongs_to_us_alone(tmp_path / "link")


def test_a_group_may_write_where_it_is_the_users_own_alone(folder, monkeypatch):
    """As the default of some systems has it: user ann, group ann, umask 002."""
    folder.chmod(0o775)
    user = programs.pwd.getpwuid(os.geteuid())
    for group, ours in ((user.pw_name, True), ("staff", False)):
        found = programs.grp.struct_group((group, "x", user.pw_gid, []))
        monkeypatch.setattr(programs.grp, "getgrgid", lambda number, found=found: found)
        assert belongs_to_us_alone(folder) == ours


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away")
def test_a_folder_of_another_user(folder):
    os.chown(folder, 12345, -1)
    assert not belongs_to_us_alone(folder)


@pytest.mark.parametrize("safe", [True, False])
def test_a_job_keeps_its_programs_in_its_workdir(folder, safe, monkeypatch, capsys):
    """Unless others could write them; and a single process keeps the user's cache."""
    asked, before = str(cache_folder() / "xla"), jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", asked)
        share_programs(folder.parent)
        assert jax.config.jax_compilation_cache_dir == asked
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(programs, "all_processes", lambda fine: fine)
        monkeypatch.setattr(programs, "at_all_processes", lambda work: work())
        folder.chmod(0o755 if safe else 0o777)
        share_programs(folder.parent)
        assert jax.config.jax_compilation_cache_dir == (str(folder) if safe else asked)
        assert ("can be written by other users" in capsys.readouterr().out) != safe
        jax.config.update("jax_compilation_cache_dir", "elsewhere")  # as JAX's own variable has it
        share_programs(folder.parent)
        assert jax.config.jax_compilation_cache_dir == "elsewhere"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        programs.compilation_cache.reset_cache()
