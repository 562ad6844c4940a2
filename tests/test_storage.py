"""What is storage that does not answer, and what is not; how long it is waited for, and what is said."""

import errno
import os

import numpy as np
import pytest

from sew_jax import storage
from sew_jax.data import audio
from sew_jax.data.problems import AudioError, Problem, check_damaged
from sew_jax.data.sources import open_source
from sew_jax.errors import Unavailable, UserError
from sew_jax.files import write_whole
from sew_jax.metrics.metrics_file import MetricsFile, read_metrics
from sew_jax.storage import believed, is_away, is_there, patient
from tests.runs import make_corpus


class Answer(Exception):
    """As libraries of remote file systems raise them; `where` is their attribute."""

    def __init__(self, where, status):
        super().__init__("the server said no")
        if where == "response dict":
            self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}
        elif where == "response":
            self.response = type("Response", (), {"status_code": status})()
        else:
            setattr(self, where, status)


class ServerDisconnectedError(Exception):
    """aiohttp's, by its name."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(storage, "LONGEST_PAUSE_S", 0.1)
    monkeypatch.setattr(storage, "_spoke_at", float("-inf"))


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "ECONNRESET"])
def test_numbers_of_the_system(name):
    number = getattr(errno, name)
    assert is_away(OSError(number, os.strerror(number), "/mnt/a.flac"))
    assert is_away(RuntimeError(f"record 3: {os.strerror(number)} [/mnt/a.flac]"))  # of a library that drops the number


@pytest.mark.parametrize("where", ["status", "code", "status_code", "response", "response dict"])
def test_answers_of_servers(where):
    assert all(is_away(Answer(where, status)) for status in (429, 500, 503))
    assert not any(is_away(Answer(where, status)) for status in (400, 401, 403, 404))


def test_answers_of_libraries():
    for text in ("UNAVAILABLE: reading from GCS", "x; DEADLINE_EXCEEDED: Timeout", "RESOURCE_EXHAUSTED: 429"):
        assert is_away(ValueError(text))
    assert is_away(TimeoutError()) and is_away(ConnectionResetError()) and is_away(ServerDisconnectedError("bye"))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EISDIR])
def test_what_the_user_must_mend(number):
    assert not is_away(OSError(number, os.strerror(number), "/mnt/a.flac"))


def test_what_an_error_came_of_counts_but_not_for_users():
    for kind, away in ((AudioError, True), (UserError, False)):
        try:
            raise kind("no") from OSError(errno.EIO, "Input/output error")
        except kind as error:
            assert is_away(error) == away
    assert not is_away(ValueError("loss is CANCELLED out")) and not is_away(KeyError("code"))


def test_it_is_asked_again_with_growing_pauses_and_one_line(monkeypatch, capfd):
    pauses, answers = [], iter([OSError(errno.EIO, "Input/output error", "/mnt/a")] * 5)
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)

    @patient
    def read():
        for error in answers:
            raise error
        return "audio"

    assert read() == "audio" and len(pauses) == 5
    assert pauses[0] == 0.02 and 0.02 <= pauses[1] <= 0.04 and 0.1 <= pauses[4] <= 0.12
    out = capfd.readouterr().out
    assert out.count("\n") == 1 and "does not answer ([Errno 5] Input/output error: '/mnt/a'); it is asked again" in out


def test_it_is_given_up_after_a_while(monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE_S", 0.2)

    @patient
    def read():
        raise OSError(errno.ESTALE, "Stale file handle", "/mnt/a")

    with pytest.raises(Unavailable, match=r"Stale file handle: '/mnt/a'.*the same command goes on") as caught:
        patient(read)()  # the outer one does not begin anew
    assert caught.value.status == 75


def test_other_errors_are_raised_at_once():
    calls = []

    @patient
    def read():
        calls.append(1)
        raise AudioError("is truncated")

    with pytest.raises(AudioError):
        read()
    assert len(calls) == 1
    with pytest.raises(AudioError):
        patient(read, doubtful=AudioError)()
    assert len(calls) == 3


def test_a_file_that_cannot_be_read_for_a_moment_is_not_damaged(tmp_path, monkeypatch):
    """What decoders say of it is "cannot be decoded" or "is truncated", whatever the system says."""
    path = str(sorted(make_corpus(tmp_path).rglob("*.flac"))[0])
    expected, blips = audio.read(path), [3]

    def open_streams(data):
        if isinstance(data, str):
            raise AudioError("cannot be decoded (System error)")
        return streams(data)

    def flaky(name, *options):
        if name == path and blips[0]:
            blips[0] -= 1
            raise OSError(errno.EIO, "Input/output error", name)
        return open_(name, *options)

    streams, open_ = audio.open_streams, open
    monkeypatch.setattr(audio, "open_streams", open_streams)
    monkeypatch.setattr("builtins.open", flaky)
    assert (audio.read(path) == expected).all() and audio.probe(path) == len(expected) and blips == [0]
    with open(path, "r+b") as file:
        file.truncate(3000)
    with pytest.raises(AudioError):
        audio.read(path)


def test_a_library_that_finds_nothing_is_believed_where_all_can_be_read(tmp_path, monkeypatch):
    """Orbax says that a checkpoint is not there while its storage does not answer; that is no reason to drop it."""
    (tmp_path / "1/params").mkdir(parents=True)
    (tmp_path / "1/params/d").write_bytes(b"whole")
    blips, open_ = [4], open

    def flaky(name, *options, **more):
        if blips[0]:
            blips[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle", name)
        return open_(name, *options, **more)

    def read():
        if blips[0]:
            raise FileNotFoundError("no checkpoint there")
        return "state"

    monkeypatch.setattr("builtins.open", flaky)
    assert patient(believed(read, tmp_path / "1"), doubtful=Exception)() == "state"

    def missing():
        raise FileNotFoundError("no checkpoint there")

    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        patient(believed(missing, tmp_path / "1"), doubtful=Exception)()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_what_does_not_answer_is_not_taken_for_what_is_not_there(number, tmp_path, monkeypatch):
    """Python's own `exists`, `isdir`, `glob` and `walk` would."""
    corpus = make_corpus(tmp_path / "corpus")
    expected = open_source(str(corpus), "train", min_samples=1, need_text=True, max_bad=0)[0].fingerprint()
    failed, random = dict.fromkeys(("stat", "scandir", "listdir"), 0), np.random.default_rng(number)

    def flaky(name, original):
        def call(*arguments, **options):
            if not failed[name] or random.random() < 0.3:  # each fails at first
                failed[name] += 1
                raise OSError(number, os.strerror(number))
            return original(*arguments, **options)

        return call

    for name in failed:
        monkeypatch.setattr(os, name, flaky(name, getattr(os, name)))
    source, problems = open_source(str(corpus), "train", min_samples=1, need_text=True, max_bad=0)
    assert source.fingerprint() == expected and not problems
    with pytest.raises(UserError, match="has no split dev"):
        open_source(str(corpus), "dev", min_samples=1, need_text=True, max_bad=0)
    assert min(failed.values()) > 0


def test_where_a_mount_was(tmp_path):
    (tmp_path / "mount/corpus").mkdir(parents=True)
    path = tmp_path / "mount/corpus/a.flac"
    beside = tmp_path / "mount/corpus/b.flac"
    beside.touch()

    def gone():
        try:
            path.read_bytes()
        except OSError as error:
            return is_away(error, seen_before=True)

    assert not gone() and is_there(tmp_path / "mount") and is_there(beside)  # someone deleted it
    beside.unlink()
    assert gone() and not is_there(path.parent)
    path.parent.rmdir()
    assert gone() and not is_there(tmp_path / "mount") and not is_there(path)


def test_rows_wait_for_a_mount_that_is_away(tmp_path, monkeypatch):
    folder = tmp_path / "mount"
    folder.mkdir()
    metrics, said = MetricsFile(folder / "metrics.jsonl", 0), []
    metrics.write({"step": 1, "setting": "s1q1k1", "loss": 2.0})
    metrics.flush()

    def waited(error):
        said.append(error)
        (tmp_path / "away").rename(folder)

    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(storage, "_say_waiting", waited)
    folder.rename(tmp_path / "away")
    metrics.write({"step": 2, "setting": "s1q1k1", "loss": 1.0})
    metrics.flush()
    metrics.close()
    assert said and [row["step"] for row in read_metrics(folder)] == [1, 2]


def test_a_file_is_written_when_its_storage_is_back(tmp_path, monkeypatch):
    folder = tmp_path / "mount"
    folder.mkdir()
    replace, failures = os.replace, [OSError(errno.ESTALE, "Stale file handle")] * 2

    def flaky(*names):
        if failures:
            raise failures.pop()
        replace(*names)

    monkeypatch.setattr(os, "replace", flaky)
    write_whole(folder / "a", b"new")
    assert (folder / "a").read_bytes() == b"new" and [path.name for path in folder.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("max_bad", "damaged", "fine"), [(2, 2, True), (2, 3, False), (0.01, 10, True), (0.01, 11, False), (0, 1, False)]
)
def test_the_bound_on_damage_is_a_number_or_a_share(max_bad, damaged, fine):
    problems = [Problem(str(i), "is truncated") for i in range(damaged)]
    if fine:
        check_damaged(problems, "corpus", max_bad, utterances=1000)
    else:
        with pytest.raises(UserError, match=rf"{damaged} utterances of corpus, which has 1000, are damaged .*max_bad="):
            check_damaged(problems, "corpus", max_bad, utterances=1000)
