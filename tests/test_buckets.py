"""What writes to a workdir, under gs:// as on a disk; and what the libraries' own errors are taken for."""

import contextlib
import json
import os

import fsspec
import jax
import jax.numpy as jnp
import optax
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

import sew_jax
from configs import pretrain
from sew_jax import line_files, storage
from sew_jax.buckets import as_path, check_bucket, look_again, move_folder, remove, state_of
from sew_jax.checkpoints.checkpointer import Checkpoints, check_place, load_params, newest_record
from sew_jax.checkpoints.leftovers import Leftovers
from sew_jax.data.problems import Problem, write_problems
from sew_jax.errors import Unavailable, UserError
from sew_jax.files import local_folder, write_json, write_whole, writing_to
from sew_jax.line_files import LineFile, read_lines
from sew_jax.main import main
from sew_jax.metrics import tensorboard
from sew_jax.metrics.metrics_file import MetricsFile, read_metrics, read_rows
from sew_jax.runtime.programs import share_programs
from sew_jax.runtime.stall_watch import STACKS, _write_stacks
from sew_jax.storage import is_away, refusal
from sew_jax.training.step import new_state
from tests.buckets import google_bucket
from tests.metrics.test_tensorboard import read

__all__ = ["google_bucket"]


class Memory(MemoryFileSystem):
    """Knows s3:// as its own; folders are but names, and nothing can be added to an object."""

    protocol = ("s3",)
    store: dict = {}  # noqa: RUF012 - fsspec's way: one store for all instances
    pseudo_dirs = [""]  # noqa: RUF012
    faults: list = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).removeprefix("s3://"))

    def pipe_file(self, path, value, **options):
        if self.faults:
            raise self.faults.pop()
        super().pipe_file(path, value, **options)

    def _open(self, path, mode="rb", **options):
        assert "a" not in mode and "+" not in mode
        return super()._open(path, mode, **options)


@pytest.fixture
def folder():
    """s3://bucket/run, in memory."""
    fsspec.register_implementation("s3", Memory, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
    Memory.store.clear()
    Memory.faults.clear()
    yield as_path("s3://bucket/run")
    backend.fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture
def places(folder, tmp_path):
    return folder, tmp_path / "run"


def row(step, **more):
    return {"step": step, "setting": "s1q1k1", "loss": step / 4} | more


def test_lines_are_those_of_a_disk_whatever_the_size_of_parts(places, monkeypatch):
    """Starts that drop what came after their checkpoint, rows that are kept, and a part that a kill left behind."""
    monkeypatch.setattr(line_files, "PART", 60)
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        for start, last in ((0, 7), (5, 9), (9, 9), (2, 4), (4, 30)):
            file = LineFile(place / "a.jsonl", keep=lambda line, start=start: json.loads(line)["step"] <= start)
            for step in range(start + 1, last + 1):
                file.append(json.dumps(row(step)).encode() + b"\n")
    remote, local = (read_lines(place / "a.jsonl") for place in places)
    assert remote == local and [json.loads(line)["step"] for line in local] == list(range(1, 31))
    parts = sorted((places[0] / "a").iterdir())
    assert len(parts) > 5 and all(part.stat().length < 2 * 60 for part in parts)
    LineFile(places[0] / "a.jsonl", keep=lambda line: False)
    assert read_lines(places[0] / "a.jsonl") == [] and len(list((places[0] / "a").iterdir())) == 1
    with pytest.raises(UserError, match=r"s3://bucket/run/none.jsonl cannot be read \(No such file"):
        read_rows(places[0] / "none.jsonl")


def test_a_write_that_fails_is_made_again_and_no_row_is_twice(folder, monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.01)
    file = MetricsFile(folder / "metrics.jsonl", 0)
    for step in range(1, 4):
        file.write(row(step))
        Memory.faults[:] = [ConnectionResetError("busy")]
        file.flush()
    file.close()
    assert read_metrics(folder) == [row(step) for step in (1, 2, 3)]
    monkeypatch.setattr(storage, "PATIENCE_S", 0.05)
    file.write(row(4))
    Memory.faults[:] = [ConnectionResetError("busy")] * 99
    with pytest.raises(Unavailable, match="busy") as caught:
        file.flush()
    assert caught.value.status == 75
    Memory.faults.clear()
    file.flush()
    assert len(read_metrics(folder)) == 4


def test_events_of_a_start_are_parts_in_order(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "PART", 1000)
    for place in (folder, tmp_path):
        file = MetricsFile(place / "metrics.jsonl", 3)
        for step in range(4, 60):
            file.write(row(step))
            file.flush()
        file.close()
    paths = sorted(folder.glob("events.out.tfevents.*"))
    assert len(paths) > 2
    parts = [read(path) for path in paths]
    assert all(part[0].file_version == "brain.Event:2" for part in parts)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    shown = [(event.step, event.summary.value, event.session_log) for part in parts for event in part[1:]]
    assert shown == [(event.step, event.summary.value, event.session_log) for event in read(path)[1:]]


def test_what_else_is_written(folder):
    write_json(folder / "config.json", {"a": 1})
    assert json.loads((folder / "config.json").read_text()) == {"a": 1}
    write_problems(folder, [Problem("a", "is short")])
    write_problems(folder, [Problem("b", "is long")], afresh=False)
    assert [line["id"] for line in read_rows(folder / "left_out.jsonl")] == ["a", "b"]
    write_problems(folder, [])
    assert read_rows(folder / "left_out.jsonl") == []
    _write_stacks(folder, "no update", 1)
    assert "test_what_else_is_written" in (folder / "stalled-1.txt").read_text() and STACKS == "stalled.txt"
    with local_folder(folder) as place:
        (place / "deep").mkdir()
        (place / "deep/file").write_bytes(b"1")
        assert not (folder / "deep").exists()
    assert (folder / "deep/file").read_bytes() == b"1" and not place.exists()
    state = state_of(folder)
    write_whole(folder / "deep/file", b"12")
    assert state_of(folder) != state
    move_folder(folder / "deep", folder / "away/deep")
    assert (folder / "away/deep/file").read_bytes() == b"12" and not (folder / "deep").exists()
    remove(folder / "away")
    assert not (folder / "away").exists()


def test_what_a_bucket_does_not_take_is_one_line(folder, monkeypatch, capsys):
    write_whole(folder / "config.json", b"{}")
    for config in ("study", "benchmark"):
        monkeypatch.setattr("sys.argv", ["main", f"--config=configs/{config}.py", "--workdir=s3://bucket/run"])
        assert main() == 2 and "writes to a local folder alone" in capsys.readouterr().err
    with pytest.raises(UserError, match="checkpoints can lie on a disk or under gs:// alone"):
        check_place(folder, "workdir")
    with pytest.raises(UserError, match="there is no bucket 'other'"):
        check_bucket(as_path("s3://other/run"), "workdir")
    config = pretrain.get_config()
    with pytest.raises(UserError, match="there is no bucket 'other'"):  # from Python as on the command line
        sew_jax.train(config, "s3://other/run")
    config.num_steps = 0
    with pytest.raises(UserError, match="num_steps: 0 must be"):
        sew_jax.train(config, "s3://other/run")
    with pytest.raises(UserError, match="addresses begin with"):
        as_path("ftp://host/run")
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("sew_jax.runtime.programs.all_processes", lambda fine: True)
    share_programs(folder)
    assert "a bucket does not tell who may write to it" in capsys.readouterr().out


def test_leftovers_of_a_bucket_are_steps_without_their_mark(folder):
    for step, whole in ((5, True), (9, False), (10, False)):
        write_whole(folder / f"checkpoints/{step}/params/d/part", b"data")
        if whole:
            write_whole(folder / f"checkpoints/{step}/commit_success.txt", b"")
    left = Leftovers(folder)
    write_whole(folder / "checkpoints/10/params/d/more", b"data")  # another process still writes there
    left.clear()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["10", "5"]


def errors_of(action):
    with pytest.raises(Exception) as caught:
        action()
    return caught.value


def test_errors_of_gcsfs_are_known(google_bucket):
    path = as_path("gs://bucket/a")
    path.write_bytes(b"1")
    for fault in ("away", "gone"):
        google_bucket.away = fault == "away"
        google_bucket.gone = fault == "gone"
        for action in (path.read_bytes, path.stat, lambda: path.write_bytes(b"2"), path.unlink):
            assert is_away(error := errors_of(action)), error
    google_bucket.away = google_bucket.gone = False
    assert not is_away(errors_of(as_path("gs://bucket/none").read_bytes))
    google_bucket.forbidden = 502
    assert is_away(error := errors_of(path.read_bytes)), error
    for google_bucket.forbidden in (401, 403):
        error = errors_of(path.read_bytes)
        assert refusal(error) and not is_away(error)
        with pytest.raises(UserError, match="gs://bucket/a cannot be written"), writing_to(path, "mend that"):
            path.write_bytes(b"2")
    google_bucket.forbidden = 0
    assert path.read_bytes() == b"1"


def test_a_bucket_that_does_not_answer_is_not_taken_for_an_empty_one(google_bucket, monkeypatch):
    """fsspec's `isdir` and `isfile` would."""
    folder, file, none = (as_path(f"gs://bucket/{name}") for name in ("run", "run/a", "none"))
    file.write_bytes(b"1")
    looks = (storage.exists, storage.is_folder, storage.is_file)
    assert [look(path) for path in (folder, file, none) for look in looks] == [
        *[True, True, False],
        *[True, False, True],
        *[False] * 3,
    ]
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    for fault in ("away", "gone"):
        setattr(google_bucket, fault, True)
        for look, path in zip(looks, (none, folder, file), strict=True):
            look_again(path)
            with pytest.raises(Unavailable):
                look(path)
        setattr(google_bucket, fault, False)
    google_bucket.forbidden = 403
    look_again(folder)
    assert refusal(errors_of(lambda: storage.is_folder(folder)))


def test_errors_of_tensorstore_and_google_are_known(google_bucket):
    tensorstore = pytest.importorskip("tensorstore")
    storage_of_google = pytest.importorskip("google.cloud.storage")
    spec = {"driver": "gcs", "bucket": "bucket", "path": "a/", "context": {"gcs_request_retries": {"max_retries": 1}}}
    store = tensorstore.KvStore.open(spec).result()
    store.write("x", b"1").result()
    assert store.read("x").result().value == b"1"
    google_bucket.away = True
    for action in (store.read("x").result, store.write("x", b"2").result, store.list().result):
        assert is_away(error := errors_of(action)), error
    client = storage_of_google.Client(project="p")
    assert is_away(error := errors_of(lambda: client.get_bucket("bucket", retry=None))), error


def test_errors_of_s3fs_are_known(google_bucket, monkeypatch):
    """The stand-in refuses whatever it is asked, which is all that these need."""
    s3fs = pytest.importorskip("s3fs")
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(s3fs.core.S3FileSystem, "retries", 1)
    files = s3fs.S3FileSystem(endpoint_url=os.environ["STORAGE_EMULATOR_HOST"], skip_instance_cache=True)
    actions = [
        lambda: files.cat_file("bucket/a"),
        lambda: files.pipe_file("bucket/a", b"1"),
        lambda: files.find("bucket/"),
    ]
    for fault in ("away", "gone"):
        google_bucket.away = fault == "away"
        google_bucket.gone = fault == "gone"
        for action in actions:
            assert is_away(error := errors_of(action)), error
    google_bucket.away = google_bucket.gone = False
    google_bucket.forbidden = 403
    for action in actions[:2]:
        with pytest.raises(UserError, match="cannot be written"), writing_to("s3://bucket/a", "mend that"):
            action()
    google_bucket.forbidden = 0


def test_a_damaged_checkpoint_of_a_bucket_is_put_aside(google_bucket, monkeypatch):
    """A part is missing, or the mark: in each case the one before is used, and what was left is out of the way."""

    def state(seed):
        return new_state({"params": {"a": jnp.full(64, seed, jnp.float32)}, "batch_stats": {}}, optax.sgd(1e-3))

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state(0))
    run = as_path("gs://bucket/run")
    with contextlib.closing(Checkpoints(run, keep=3)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(state(step), step, {"step": step})
            checkpoints.wait()
    prefix = "bucket/run/checkpoints/"
    del google_bucket.store[f"{prefix}3/commit_success.txt"]
    for name in google_bucket.names(f"{prefix}2/params/"):
        if "/d/" in name or name.startswith("d/"):
            del google_bucket.store[f"{prefix}2/params/{name}"]
    with contextlib.closing(Checkpoints(run, keep=3)) as checkpoints:
        step, restored, damaged = checkpoints.restore(like)
        assert step == 1 and float(restored.params["a"][0]) == 1.0 and [number for number, _ in damaged] == [2]
        assert checkpoints.steps() == [1]
        assert google_bucket.names("bucket/run/damaged/2/") and not google_bucket.names(f"{prefix}2/")
        checkpoints.save(state(9), 3, {"step": 3})  # in place of what was left
        checkpoints.wait()
        assert checkpoints.restore(like).step == 3
    monkeypatch.setattr(storage, "PATIENCE_S", 0.1)
    for fault in ("away", "gone"):  # no folder that is not seen is taken for none
        setattr(google_bucket, fault, True)
        for look in (lambda: newest_record(run), lambda: load_params(run, place), lambda: Leftovers(run)):
            with pytest.raises(Unavailable):
                look()
        setattr(google_bucket, fault, False)
    assert newest_record(run)["step"] == 3
