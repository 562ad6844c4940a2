"""gs:// and s3:// for tests: stand-ins behind the libraries that ask real buckets."""

import contextlib
import functools
import types

import fsspec
import pytest
from etils.epath import backend

from tests.data.stand_in import StandIn, serve, variables


@functools.cache
def _server():
    """One for the process, as TensorStore reads its address once."""
    stand_in, stack = StandIn(), contextlib.ExitStack()
    return stand_in, stack.enter_context(serve(stand_in)), stack


@pytest.fixture
def google_bucket(monkeypatch):
    """An empty bucket `gs://bucket` behind gcsfs, google-cloud-storage and TensorStore; skipped without them."""
    gcsfs = pytest.importorskip("gcsfs")
    stand_in, address, _ = _server()
    stand_in.store.clear()
    stand_in.methods.clear()
    stand_in.delay, stand_in.refused, stand_in.away, stand_in.faults = 0.0, 0.0, False, []
    stand_in.gone, stand_in.forbidden = False, 0
    for name, value in variables(address).items():
        monkeypatch.setenv(name, value)
    for name in ("gs", "gcs"):  # another test may have put its own there
        fsspec.register_implementation(name, gcsfs.core.GCSFileSystem, clobber=True)
        monkeypatch.setitem(fsspec.config.conf, name, {"token": "anon"})
    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=_quick_sleep))
    backend.fsspec_backend._get_filesystem.cache_clear()
    gcsfs.core.GCSFileSystem.clear_instance_cache()
    yield stand_in
    stand_in.away, stand_in.refused, stand_in.faults = False, 0.0, []
    backend.fsspec_backend._get_filesystem.cache_clear()


async def _quick_sleep(seconds):
    import asyncio

    await asyncio.sleep(seconds / 100)
