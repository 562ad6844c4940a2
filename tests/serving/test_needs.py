"""Where what serving needs is not installed, one line says so."""

import importlib.util

import pytest

from configs import serve as serve_config
from sew_jax.errors import UserError
from sew_jax.serving.serve import serve


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    with pytest.raises(UserError, match=r"serve: .*uvicorn.* not found; .*sew_jax\[serve\]"):
        serve(serve_config.get_config(), tmp_path)
