"""Folders and manifests."""

import json
import pickle

import pytest
import soundfile

from sew_jax.data.sources import open_source
from sew_jax.errors import UserError


def opened(data, split="train", **changes):
    return open_source(str(data), split, **(dict(min_samples=1, need_text=True, max_bad=0) | changes))


def test_librispeech_layout(corpus):
    source, problems = opened(corpus)
    assert [source.id(i) for i in range(len(source))] == [f"1-1-{i:04d}" for i in range(4)]
    assert source.samples.tolist() == [16_000, 20_000, 24_000, 28_000]
    assert [source.text(i) for i in range(4)] == ["WORD A", "WORD B", "WORD C", "WORD D"]
    assert len(source.audio(2)) == 24_000 and not problems


def test_several_splits_and_roots(corpus, tmp_path):
    assert len(opened(corpus, "train,test")[0]) == 5
    assert len(opened(corpus, "")[0]) == 5
    (tmp_path / "second" / "train" / "9").mkdir(parents=True)
    soundfile.write(tmp_path / "second" / "train" / "9" / "other.wav", [0.1] * 8000, 8_000)
    source, _ = opened(f"{corpus},{tmp_path / 'second'}", need_text=False)
    assert len(source) == 5 and source.samples[-1] == 16_000


def test_manifest(corpus, tmp_path):
    path = tmp_path / "list.jsonl"
    rows = [
        {"audio": "corpus/train/1/1/1-1-0000.flac", "text": "ONE", "split": "train"},
        {"audio_filepath": str(corpus / "train/1/1/1-1-0001.flac"), "text": "TWO", "duration": 1.25, "id": "two"},
        {"audio": "corpus/train/1/1/1-1-0002.flac", "text": "THREE", "split": "dev"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\n")
    source, _ = opened(path)
    assert [(source.id(i), source.text(i), int(source.samples[i])) for i in range(2)] == [
        ("corpus/train/1/1/1-1-0000", "ONE", 16_000),
        ("two", "TWO", 20_000),
    ]
    assert len(opened(path, "")[0]) == 3


def test_damage_is_named_counted_and_bounded(corpus):
    (corpus / "train/1/1/1-1-0001.flac").write_text("no audio")
    source, problems = opened(corpus, max_bad=1)
    assert len(source) == 3 and [p.id for p in problems] == ["1-1-0001"] and "cannot be decoded" in problems[0].reason
    with pytest.raises(UserError, match=r"1 utterances .*1-1-0001 cannot be decoded.*max_bad"):
        opened(corpus)


def test_missing_transcripts(corpus):
    transcript = corpus / "train/1/1/1-1.trans.txt"
    transcript.write_text(transcript.read_text().replace("1-1-0002 WORD C\n", ""))
    _, problems = opened(corpus, max_bad=1)
    assert problems[0].id == "1-1-0002" and "no transcript" in problems[0].reason
    transcript.unlink()
    with pytest.raises(UserError, match="no transcripts in split train"):
        opened(corpus)
    assert len(opened(corpus, need_text=False)[0]) == 4


def test_short_utterances_are_left_out_and_do_not_count_as_damage(corpus):
    source, problems = opened(corpus, min_samples=18_000)
    assert len(source) == 3 and "shorter than the" in problems[0].reason
    with pytest.raises(UserError, match=r"no usable audio.*all 4 were left out"):
        opened(corpus, min_samples=10**6)


@pytest.mark.parametrize(
    ("data", "split", "message"),
    [
        ("missing", "train", "does not exist"),
        ("corpus", "valid", "has no split valid; it has: test, train"),
        ("empty", "", "holds no audio"),
        ("empty", "train", "holds no audio"),
        ("flat", "test", "has no split test; it has: train"),
        ("corpus,flat", "test", "has no split test; it has: train"),
        ("list.jsonl", "test", "has no split test; it has: dev, train"),
        ("", "train", "data is empty"),
        ("notes.txt", "", "no line of the form"),
    ],
)
def test_paths_that_lead_nowhere(corpus, tmp_path, data, split, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello\n")
    (tmp_path / "list.jsonl").write_text('{"audio": "a.wav"}\n{"audio": "b.wav", "split": "dev"}\n')
    (tmp_path / "flat").mkdir()
    soundfile.write(tmp_path / "flat/a.wav", [0.1] * 1600, 16_000)
    with pytest.raises(UserError, match=message):
        opened(data, split)


def test_what_has_no_splits_is_train(corpus, tmp_path):
    (tmp_path / "flat").mkdir()
    soundfile.write(tmp_path / "flat/a.wav", [0.1] * 1600, 16_000)
    rows = [{"audio": "flat/a.wav", "id": name, **split} for name, split in (("b", {}), ("c", {"split": "dev"}))]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = ",".join(str(tmp_path / name) for name in ("flat", "list.jsonl", "corpus"))
    source, _ = opened(places, "train", need_text=False)
    assert [source.id(i) for i in range(2)] == ["a", "b"] and source.sizes == [1, 1, 4]


def test_an_id_that_occurs_twice_is_damage(corpus, tmp_path):
    rows = [
        {"audio": f"corpus/train/1/1/1-1-000{i}.flac", "text": "A", "id": "same" if i else "other"} for i in range(3)
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, problems = opened(tmp_path / "list.jsonl", "", max_bad=1)
    assert [source.id(i) for i in range(2)] == ["other", "same"]
    assert [p.id for p in problems] == ["same"] and "1-1-0001.flac" in problems[0].reason


def test_text_beside_each_file(tmp_path):
    """Ids are paths under the root, since other folders may hold the same names."""
    for folder, text in (("a", "ONE  TWO"), ("b", "\ufeffÄÖ\n")):
        (tmp_path / "c" / folder).mkdir(parents=True)
        soundfile.write(tmp_path / "c" / folder / "x y.wav", [0.1] * 1600, 16_000)
        (tmp_path / "c" / folder / "x y.txt").write_text(text, encoding="utf-8")
    source, problems = opened(tmp_path / "c", "")
    assert [(source.id(i), source.text(i)) for i in range(2)] == [
        ("a/x y", "ONE TWO"),
        ("b/x y", "ÄÖ"),
    ] and not problems


def test_long_utterances_are_left_out_and_do_not_count_as_damage(corpus):
    source, problems = opened(corpus, max_samples=24_000)
    assert len(source) == 3 and "longer than input.max_seconds=1.5" in problems[0].reason


def test_links(corpus, tmp_path):
    """Those inside the corpus are followed; the others are named."""
    folder = corpus / "train" / "1" / "1"
    soundfile.write(tmp_path / "outside.flac", [0.1] * 16_000, 16_000)
    (folder / "1-1-0007.flac").symlink_to(tmp_path / "outside.flac")
    (folder / "1-1-0008.flac").symlink_to(tmp_path / "nowhere.flac")
    (folder / "1-1-0009.flac").symlink_to(corpus / "test" / "2" / "1" / "2-1-0000.flac")
    (folder / "deeper").symlink_to(corpus / "test", target_is_directory=True)
    source, problems = opened(corpus, need_text=False, max_bad=3)
    assert [source.id(i) for i in range(len(source))] == [f"1-1-000{i}" for i in (0, 1, 2, 3, 9)]
    reasons = {p.id: p.reason for p in problems}
    assert "link out of" in reasons["1-1-0007"] and reasons["1-1-0008"] == "is a broken link"
    assert "link to a folder" in reasons["train/1/1/deeper"]


def test_a_fingerprint_is_of_ids_lengths_and_their_order(tmp_path):
    """All that a batch plan turns on: with another of them the same batch would hold other speech."""

    def fingerprint(*utterances):
        lines = []
        for name, samples in utterances:
            soundfile.write(tmp_path / f"{name}.wav", [0.1] * samples, 16_000)
            lines.append(json.dumps({"audio": f"{name}.wav", "id": name}))
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
        return opened(tmp_path / "list.jsonl", "", need_text=False)[0].fingerprint()

    first = fingerprint(("a", 8000), ("b", 9000))
    assert first == fingerprint(("a", 8000), ("b", 9000))
    others = [
        fingerprint(("a", 8000), ("c", 9000)),  # another id alone
        fingerprint(("a", 8000), ("b", 9001)),
        fingerprint(("b", 9000), ("a", 8000)),
        fingerprint(("a", 8000)),
    ]
    assert len({first, *others}) == 5


def test_a_source_survives_pickling(corpus):
    source, _ = opened(corpus)
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint() and (again.audio(2) == source.audio(2)).all()
    assert (source.audio(2, 100, 50) == source.audio(2)[100:150]).all()
