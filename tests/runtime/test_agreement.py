"""Hosts that differ: what each has is compared before update 1, and what one cannot do all say."""

import json
import shutil
import socket

import pytest

from sew_jax.errors import Unavailable, UserError
from sew_jax.metrics.metrics_file import read_metrics
from sew_jax.runtime import agreement, distributed
from sew_jax.runtime.agreement import at_all_processes, check_same, what_computes
from tests.jobs import KEYS_AS_ON_TPU, TINY, Job
from tests.runs import make_corpus

HOST = socket.gethostname()
SMALL = [*TINY, "--config.compression.squeeze=(1,)", "--config.input.buckets=1", "--config.num_steps=3"]


@pytest.fixture
def places(tmp_path):
    """Two hosts' folders, each with a corpus of its own under the same name."""
    make_corpus(tmp_path / "0/corpus")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    return tmp_path / "0", tmp_path / "1"


def test_hosts_that_list_the_data_differently_are_named(places, tmp_path):
    (places[1] / "corpus/train/1/1/1-1-0003.flac").unlink()
    job = Job("corpus", tmp_path / "run", processes=2, options=SMALL, places=places)
    for status, _, stderr in job.end():
        assert status == 2 and stderr.count("error: ") == 1, stderr
        assert f"differ in data.utterances: process 1 ({HOST}) has 11, others have 12" in stderr, stderr
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_hosts_with_other_keys_are_named(places, tmp_path):
    own = [], ["--config.optim.lr=0.1"]
    for status, _, stderr in Job("corpus", tmp_path / "run", processes=2, options=SMALL, places=places, own=own).end():
        assert status == 2 and f"differ in config.optim.lr: process 1 ({HOST}) has 0.1, others have " in stderr, stderr


def test_what_one_host_cannot_do_all_say(places, tmp_path):
    shutil.rmtree(places[1] / "corpus")
    (_, _, of_first), (_, _, of_second) = ended = Job(
        "corpus", tmp_path / "run", processes=2, options=SMALL, places=places
    ).end()
    assert [status for status, *_ in ended] == [2, 2]
    assert f"error: process 1 ({HOST}): data: " in of_first and "error: data: " in of_second, ended


def test_what_is_held_out_is_so_at_all_or_at_none(places, tmp_path):
    for place in places:
        (place / "corpus/test").rename(place / "corpus/dev")
    (places[1] / "corpus/dev/2/1/2-1-0003.flac").unlink()
    options = [*SMALL, "--config.eval.every=3"]
    for status, _, stderr in Job("corpus", tmp_path / "run", processes=2, options=options, places=places).end():
        assert status == 2 and f"differ in data of corpus:dev: process 1 ({HOST}) has [4, " in stderr, stderr
    shutil.rmtree(places[1] / "corpus/dev")
    (first, out, _), (second, *_) = Job("corpus", tmp_path / "run", processes=2, options=options, places=places).end()
    assert first == second == 0
    assert f"held out  nothing: the data have no usable split `dev` (process 1 ({HOST}" in out


def test_a_workdir_that_cannot_be_written_is_one_line_at_all(places, tmp_path):
    (tmp_path / "file").touch()
    job = Job("corpus", tmp_path / "file/run", processes=2, options=SMALL, places=places)
    for status, _, stderr in job.end():
        assert status == 2 and "file/run cannot be written (not a directory" in stderr, stderr
        assert "Traceback" not in stderr, stderr


def test_a_workdir_that_is_not_shared_ends_the_job_within_a_minute(places):
    assert agreement._PATIENCE_S < 60
    job = Job("corpus", "run", processes=2, options=SMALL, places=places)
    for status, _, stderr in job.end():
        assert status == 2 and "--workdir must lie on storage that all processes share" in stderr, stderr
    assert not [path for place in places if (place / "run").exists() for path in (place / "run").iterdir()]


def test_damage_of_one_host_is_counted_by_all_and_programs_are_shared(places, tmp_path):
    """Process 1 alone cannot read a file. Started again, all processes find the programs that the first one wrote."""
    flac = places[1] / "corpus/train/1/1/1-1-0003.flac"
    data = flac.read_bytes()
    flac.write_bytes(data[:1000] + bytes(len(data) - 1000))  # the header is as it was
    caches = {
        "XDG_CACHE_HOME": [str(place / "cache") for place in places],
        "SEW_JAX_CACHE": "",
        "JAX_COMPILATION_CACHE_DIR": "",
    }
    caches |= {"JAX_DEBUG_LOG_MODULES": "jax._src.compiler"}
    stderrs = []
    for options, statuses in ((SMALL, [0, 0]), ([*SMALL, "--config.num_steps=9", "--config.input.max_bad=0"], [2, 2])):
        ended = Job(
            "corpus", tmp_path / "run", processes=2, options=options, places=places, first=KEYS_AS_ON_TPU, **caches
        ).end()
        assert [status for status, *_ in ended] == statuses, ended
        stderrs += [stderr for *_, stderr in ended]
    # both say what one has met, first and last
    assert "data: 1 utterances of corpus, which has 12, are damaged (first: 1-1-0003 " in stderrs[2], stderrs[2]
    assert "data: 1 utterances of corpus, which has 12, are damaged (first: 1-1-0003 " in stderrs[3], stderrs[3]
    left_out = [json.loads(line)["id"] for line in (tmp_path / "run/left_out.jsonl").read_text().splitlines()]
    assert left_out == ["1-1-0003"] and "unread" not in read_metrics(tmp_path / "run")[0]
    assert list((tmp_path / "run/programs").glob("jit_gradients-*"))
    hits = ["Persistent compilation cache hit for 'jit_gradients'" in stderr for stderr in stderrs]
    assert hits == [False, False, True, True], stderrs


def test_a_process_alone_agrees_with_itself():
    check_same({"config": {"a": 1}})
    assert at_all_processes(lambda: 3) == 3
    with pytest.raises(UserError, match="mine"):
        at_all_processes(_fail)


def _fail():
    raise UserError("mine")


@pytest.mark.parametrize("kind", [UserError, Unavailable])
def test_others_end_as_the_one_that_failed(kind, monkeypatch):
    """What storage that does not answer ends is started again everywhere; what the user must mend is not."""
    text = json.dumps([kind.status, "process 1 (host1): away"])
    monkeypatch.setattr(agreement, "texts_of_all", lambda mine: [mine, text, text, "[]"])
    with pytest.raises(kind, match=r"^process 1 \(host1\): away \(1 more processes have an error\)$"):
        at_all_processes(lambda: 3)


def test_the_odd_one_out_is_named(monkeypatch):
    """Of four hosts, the one that differs, whichever it is; and the rest of what differs is counted."""
    usual = {"data": {"sha256": "a" * 200, "utterances": 12}, "versions": {"jax": "1"}}
    for odd in range(4):
        records = [usual if i != odd else {"data": {"sha256": "b", "utterances": 12}, "versions": {}} for i in range(4)]
        texts = [json.dumps([f"process {i} (host{i})", agreement._flat(r)]) for i, r in enumerate(records)]
        monkeypatch.setattr(agreement, "texts_of_all", lambda text, texts=texts: texts)
        monkeypatch.setattr(agreement, "same_everywhere", lambda value: False)
        with pytest.raises(UserError) as raised:
            check_same(records[0])
        assert f'differ in data.sha256: process {odd} (host{odd}) has "b", others have "aaaa' in str(raised.value)
        assert "1 more keys differ (versions.jax)" in str(raised.value) and len(str(raised.value)) < 400


def test_versions_say_what_code_runs():
    found = what_computes()
    assert found == what_computes() and len(found["code"]) == 64 and found["jax"].count(".") == 2


def test_texts_of_a_process_alone():
    assert distributed.texts_of_all("é") == ["é"]
