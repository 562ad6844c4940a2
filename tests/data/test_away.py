"""Storage that fails once for each file and folder: listings, what is loaded and what is written are as without it."""

import builtins
import errno
import io
import os
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sew_jax import storage
from sew_jax.checkpoints import model_folder
from sew_jax.data.labels import Labels
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding import lexicon
from sew_jax.errors import Unavailable
from sew_jax.metrics.metrics_file import read_rows
from sew_jax.transcription.recordings import find_recordings
from tests.data.forms import MAKERS, opened, random_waves
from tests.data.test_prepare import prepared, tree
from tests.runs import make_corpus

STALE = (errno.ESTALE, os.strerror(errno.ESTALE))
LOOKS, OPENS = ((os, "stat"), (os, "listdir"), (os, "scandir")), ((builtins, "open"), (io, "open"))


@pytest.fixture
def stale_once(monkeypatch):
    """From its call on, what the system is first asked of each path below a folder fails; returns how often it did."""
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(storage, "LONGEST_PAUSE_S", 0.002)

    def begin(root, calls=LOOKS + OPENS):
        failed = set()

        def flaky(original):
            def call(path, *arguments, **options):
                name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
                name = re.sub(r"\.writing-\w+", ".writing", name)  # another one each time that it is asked again
                asked = (original.__name__, name)
                if name.startswith(os.fspath(root)) and asked not in failed:
                    failed.add(asked)
                    raise OSError(*STALE, name)
                return original(path, *arguments, **options)

            return call

        for owner, name in calls:
            monkeypatch.setattr(owner, name, flaky(getattr(owner, name)))
        return failed

    return begin


@pytest.fixture(scope="module")
def waves():
    return random_waves()


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_every_form_is_listed(make, tmp_path, waves, stale_once):
    data = make(tmp_path, waves)
    expected, _ = opened(data)
    failed = stale_once(tmp_path, LOOKS)  # alone: a file that cannot be opened has all of it listed anew
    source, problems = opened(data)
    assert not problems and source.fingerprint() == expected.fingerprint() and failed
    assert [source.text(i) for i in range(len(source))] == [expected.text(i) for i in range(len(source))]


def test_recordings_are_found(tmp_path, stale_once):
    (make_corpus(tmp_path) / "train").rename(tmp_path / "a, b")  # a name with a comma
    expected = find_recordings(str(tmp_path / "a, b"))
    assert len(expected.recordings) > 2 and stale_once(tmp_path) == set()
    assert find_recordings(str(tmp_path / "a, b")) == expected


def _vocabulary(folder):
    (folder / "vocab.json").write_text('{"<pad>": 0, "|": 1, "a": 2, "<s>": 3}')
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "bos_token": "<s>"}')
    return lambda: Vocabulary.load(folder / "vocab.json")


def _labels(folder):
    Labels(("no", "yes")).save(folder)
    return lambda: Labels.load(folder)


def _language_model(folder):
    (folder / "lm.arpa").write_text("\\data\\\nngram 1=2\n\n\\1-grams:\n-1 a\n-1 b\n\n\\end\\\n")
    return lambda: lexicon.lm_words(str(folder / "lm.arpa"))


def _lexicon(folder):
    (folder / "words").write_text("ab\nba\n")
    return lambda: lexicon._read_file(Vocabulary(("<pad>", "|", "a", "b"), blank_symbol="<pad>"), str(folder / "words"))


def _rows(folder):
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    return lambda: read_rows(folder / "metrics.jsonl")


@pytest.mark.parametrize("write", [_vocabulary, _labels, _language_model, _lexicon, _rows])
def test_it_is_loaded(write, tmp_path, stale_once):
    load = write(tmp_path)
    expected, failed = load(), stale_once(tmp_path)
    assert load() == expected and failed


def test_weights_are_loaded(tmp_path, monkeypatch, stale_once):
    save_file({"a/b": np.arange(3.0)}, tmp_path / model_folder.WEIGHTS)
    failures = [OSError(*STALE)]

    def flaky(path):
        if failures:
            raise failures.pop()
        return load_file(path)

    monkeypatch.setattr(model_folder, "load_file", flaky)
    stale_once(tmp_path)
    assert model_folder.read_weights(tmp_path)["a"]["b"].tolist() == [0, 1, 2] and not failures


def test_a_dataset_is_prepared(corpus, tmp_path, stale_once, monkeypatch, capfd):
    expected = tree(prepared(corpus, tmp_path / "undisturbed"))
    failed = stale_once(tmp_path)
    prepared(corpus, tmp_path / "out")
    assert len({name for _, name in failed if name.startswith(str(tmp_path / "out"))}) > 3
    failed.clear()
    prepared(corpus, tmp_path / "out")
    assert "nothing to do" in capfd.readouterr().out  # its fingerprint is the same, too
    monkeypatch.undo()
    assert tree(tmp_path / "out") == expected


def test_a_dataset_whose_storage_stays_away_is_no_mistake(corpus, tmp_path, monkeypatch):
    def never(*names):
        raise OSError(*STALE)

    monkeypatch.setattr(storage, "PATIENCE_S", 0.05)
    monkeypatch.setattr(storage, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(os, "replace", never)
    with pytest.raises(Unavailable):
        prepared(corpus, tmp_path / "out")
