"""The same corpus in every form that people have: read sample for sample and text for text as the plain folder."""

import csv
import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from configs.prepare import get_config
from sew_jax.data import entries
from sew_jax.data.prepare import prepare
from sew_jax.data.sources import open_source
from sew_jax.errors import UserError

RATE = 16_000
TEXTS = ("ONE TWO", "WHAT'S THE TIME", "NINE", "ÄÖ Ü", "FIVE SIX SEVEN EIGHT")
SPEAKERS = ("ann", "ann", "bob", "bob", "cy")
LENGTHS = (16_000, 20_000, 12_345, 24_000, 17_001)
BEGINS = np.cumsum([0, *LENGTHS])[:-1]


@pytest.fixture(scope="module")
def waves():
    random = np.random.default_rng(5)
    return [random.integers(-9000, 9000, n).astype(np.int16) for n in LENGTHS]


def opened(data, split="train", **options):
    return open_source(str(data), split, **(dict(min_samples=1, need_text=True, max_bad=0) | options))


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def json_lines(rows):
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def files(root, waves, folder="audio", suffix=".flac"):
    """Each utterance as a file of its own: their names below `root`."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{folder}/u{i}{suffix}" for i in range(len(waves))]
    for name, wave in zip(names, waves, strict=True):
        soundfile.write(root / name, wave, RATE, subtype="PCM_16")
    return names


def recording(root, waves, name="long.wav", channels=1):
    """All utterances in one file, one after another; of two channels the second holds them."""
    wave = np.concatenate(waves)
    wave = np.stack([wave // 3 + 7, wave], 1) if channels == 2 else wave
    soundfile.write(root / name, wave, RATE, subtype="PCM_16")
    return name


def seconds(samples):
    return samples / RATE


def make_ours(root, waves):
    rows = [{"audio": n, "text": t} for n, t in zip(files(root, waves), TEXTS, strict=True)]
    write_lines(root / "list.jsonl", json_lines(rows))
    return root / "list.jsonl"


def make_nemo(root, waves):
    rows = [
        {"audio_filepath": name, "text": text, "duration": round(seconds(n), 2)}
        for name, text, n in zip(files(root, waves), TEXTS, LENGTHS, strict=True)
    ]
    write_lines(root / "manifest.json", json_lines(rows))
    return root / "manifest.json"


def make_nemo_segments(root, waves):
    name = recording(root, waves)
    rows = [
        {"audio_filepath": name, "text": text, "offset": seconds(begin), "duration": seconds(n)}
        for text, begin, n in zip(TEXTS, BEGINS.tolist(), LENGTHS, strict=True)
    ]
    del rows[-1]["duration"]  # to the end
    write_lines(root / "manifest.json", json_lines(rows))
    return root / "manifest.json"


def make_array(root, waves):
    rows = [{"path": n, "sentence": t} for n, t in zip(files(root, waves), TEXTS, strict=True)]
    (root / "list.json").write_text(json.dumps(rows, indent=1), encoding="utf-16")
    return root / "list.json"


def make_bom(root, waves):
    rows = [{"wav": n, "txt": t, "key": n} for n, t in zip(files(root, waves), TEXTS, strict=True)]
    (root / "list.list").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json_lines(rows)).encode())
    return root / "list.list"


def lhotse_recording(name, samples, channels=1):
    source = {"type": "file", "channels": list(range(channels)), "source": name}
    whole = {"sampling_rate": RATE, "num_samples": samples, "duration": seconds(samples)}
    return {"id": name.split(".")[0], "sources": [source]} | whole | {"channel_ids": list(range(channels))}


def write_gz(path, rows):
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in json_lines(rows)).encode()))


def make_cuts(root, waves):
    """A cut a file."""
    rows = []
    for i, name in enumerate(files(root, waves)):
        whole = {"start": 0.0, "duration": seconds(LENGTHS[i]), "channel": 0}
        said = [{"id": f"s{i}", "recording_id": f"u{i}", "text": TEXTS[i], "speaker": SPEAKERS[i], **whole}]
        rows.append({"id": f"c{i}", **whole, "supervisions": said, "type": "MonoCut"})
        rows[-1]["recording"] = lhotse_recording(name, LENGTHS[i])
    write_gz(root / "cuts.jsonl.gz", rows)
    return root / "cuts.jsonl.gz"


def make_cut_with_supervisions(root, waves):
    """One cut of the second channel of a file, with a supervision for each utterance."""
    name = recording(root, waves, channels=2)
    said = [
        {"id": f"s{i}", "recording_id": "long", "start": seconds(b), "duration": seconds(n), "channel": 1, "text": t}
        for i, (b, n, t) in enumerate(zip(BEGINS.tolist(), LENGTHS, TEXTS, strict=True))
    ]
    total = sum(LENGTHS)
    cut = {"id": "c", "start": 0.0, "duration": seconds(total), "channel": 1, "supervisions": said, "type": "MonoCut"}
    write_lines(root / "cuts.jsonl", json_lines([cut | {"recording": lhotse_recording(name, total, 2)}]))
    return root / "cuts.jsonl"


def make_supervisions(root, waves):
    name, total = recording(root, waves, channels=2), sum(LENGTHS)
    write_gz(root / "tiny_recordings_train.jsonl.gz", [lhotse_recording(name, total, 2)])
    said = [
        {"id": f"s{i}", "recording_id": "long", "start": seconds(b), "duration": seconds(n), "channel": 1, "text": t}
        for i, (b, n, t) in enumerate(zip(BEGINS.tolist(), LENGTHS, TEXTS, strict=True))
    ]
    write_gz(root / "tiny_supervisions_train.jsonl.gz", said)
    return root / "tiny_supervisions_train.jsonl.gz"


def make_kaldi(root, waves):
    folder = root / "data" / "train"
    folder.mkdir(parents=True)
    names = files(folder, waves)
    write_lines(folder / "wav.scp", [f"u{i} {name}" for i, name in enumerate(names)])
    write_lines(folder / "text", [f"u{i}\t{text}" for i, text in enumerate(TEXTS)])
    write_lines(folder / "utt2spk", [f"u{i} {speaker}" for i, speaker in enumerate(SPEAKERS)])
    return root / "data"


def make_kaldi_segments(root, waves):
    write_lines(root / "wav.scp", [f"long {root / recording(root, waves)}"])
    ends = (BEGINS + LENGTHS).tolist()
    spans = [f"{seconds(b):.6f} {seconds(e):.6f}" for b, e in zip(BEGINS.tolist(), ends, strict=True)]
    write_lines(root / "segments", [f"u{i} long {span}" for i, span in enumerate(spans)])
    write_lines(root / "text", [f"u{i} {text}" for i, text in enumerate(TEXTS)])
    return root


def make_common_voice(root, waves):
    names = files(root, waves, "clips")
    header = "client_id\tpath\tsentence\tup_votes"
    rows = [f"{s}\t{n.split('/')[1]}\t{t}\t2" for s, n, t in zip(SPEAKERS, names, TEXTS, strict=True)]
    write_lines(root / "train.tsv", [header, *rows])
    write_lines(root / "validated.tsv", [header, *rows])
    write_lines(root / "test.tsv", [header, rows[0]])
    return root


def make_csv(root, waves):
    with (root / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "transcription"])
        writer.writerows(zip(files(root, waves), TEXTS, strict=True))
    return root / "list.csv"


def make_audio_folder(root, waves):
    (root / "train").mkdir()
    names = files(root / "train", waves, "parts")
    rows = [{"file_name": n, "transcription": t} for n, t in zip(names, TEXTS, strict=True)]
    write_lines(root / "train" / "metadata.jsonl", json_lines(rows))
    return root


def make_ljspeech(root, waves):
    names = files(root, waves, "wavs", ".wav")
    lines = [f"{n.split('/')[1][:-4]}|{t.lower()}|{t}" for n, t in zip(names, TEXTS, strict=True)]
    write_lines(root / "metadata.csv", lines)
    return root


def make_fairseq(root, waves):
    names = files(root, waves, suffix=".wav")
    write_lines(root / "train.tsv", [root, *(f"{n}\t{k}" for n, k in zip(names, LENGTHS, strict=True))])
    write_lines(root / "train.wrd", TEXTS)
    return root / "train.tsv"


def audio_column(root, waves):
    data = [{"bytes": (root / n).read_bytes(), "path": n.split("/")[1]} for n in files(root, waves)]
    return pa.array(data, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def make_parquet(root, waves):
    table = pa.table({"audio": audio_column(root / "made", waves), "text": list(TEXTS)})
    (root / "hub" / "data").mkdir(parents=True)
    pq.write_table(table[:2], root / "hub/data/train-00000-of-00002.parquet", row_group_size=1)
    pq.write_table(table[2:], root / "hub/data/train-00001-of-00002.parquet", row_group_size=2)
    pq.write_table(table[:1], root / "hub/data/test-00000-of-00001.parquet")
    return root / "hub"


def make_saved(root, waves):
    """As `DatasetDict.save_to_disk` writes it."""
    table = pa.table({"audio": audio_column(root / "made", waves), "sentence": list(TEXTS)})
    folder = root / "saved" / "train"
    folder.mkdir(parents=True)
    for part, rows in enumerate((table[:3], table[3:])):
        with pa.ipc.new_stream(str(folder / f"data-0000{part}-of-00002.arrow"), rows.schema) as writer:
            writer.write_table(rows, max_chunksize=2)
    names = [{"filename": f"data-0000{part}-of-00002.arrow"} for part in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": "train"}))
    (folder / "dataset_info.json").write_text("{}")
    (root / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return root / "saved"


MAKERS = [value for name, value in sorted(globals().items()) if name.startswith("make_")]
WITH_SPEAKERS = ("make_cuts", "make_kaldi", "make_common_voice")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, waves):
    root = tmp_path_factory.mktemp("plain")
    for name, text in zip(files(root, waves, "train"), TEXTS, strict=True):
        (root / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    source, problems = opened(root)
    assert len(source) == len(TEXTS) and not problems
    return source


def assert_same(source, plain):
    assert source.samples.tolist() == plain.samples.tolist()
    assert len({source.id(i) for i in range(len(source))}) == len(plain)
    for i in range(len(plain)):
        assert source.text(i) == plain.text(i)
        np.testing.assert_array_equal(source.audio(i), plain.audio(i))
        np.testing.assert_array_equal(source.audio(i, 500, 700), plain.audio(i, 500, 700))
        np.testing.assert_array_equal(source.audio(i, 11_000, 10**6), plain.audio(i, 11_000, 10**6))


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_every_form_is_read_as_the_plain_folder(make, tmp_path, waves, plain):
    data = make(tmp_path, waves)
    source, problems = opened(data)
    assert not problems
    assert_same(source, plain)
    if make.__name__ in WITH_SPEAKERS:
        assert source._corpora[0].column("speaker").to_pylist() == list(SPEAKERS)
    config = get_config()
    config.update({"data": str(data), "workers": 0})
    prepare(config, tmp_path / "prepared")
    prepared, _ = opened(tmp_path / "prepared")
    assert prepared.fingerprint() == source.fingerprint()
    assert_same(prepared, plain)


def test_other_splits(tmp_path, waves):
    assert len(opened(make_parquet(tmp_path / "p", waves), "test")[0]) == 1
    (tmp_path / "v").mkdir()
    assert len(opened(make_common_voice(tmp_path / "v", waves), "test")[0]) == 1
    assert len(opened(tmp_path / "v", "", max_bad=1)[0]) == 5  # train and test, of which one is in both
    for place in ("p/hub", "v"):
        with pytest.raises(UserError, match=r"has no split dev; it has: test, train"):
            opened(tmp_path / place, "dev")


def test_segments_are_parts_in_prepared_data_of_other_rates_too(tmp_path):
    """A slice of what the whole file is read as: no sample more or less at either end."""
    time = np.arange(5 * 44_100) / 44_100
    soundfile.write(tmp_path / "a.wav", 0.4 * np.sin(2 * np.pi * 333 * time), 44_100)
    rows = [{"audio": "a.wav", "offset": o, "duration": d, "text": "A"} for o, d in ((0.5, 1.25), (0, 0.7), (4.1, 0.9))]
    write_lines(tmp_path / "list.jsonl", json_lines(rows))
    source, _ = opened(tmp_path / "list.jsonl")
    write_lines(tmp_path / "whole.jsonl", ['{"audio": "a.wav", "text": "A"}'])
    whole = opened(tmp_path / "whole.jsonl")[0].audio(0)
    assert [source.id(i) for i in range(3)] == ["a-0.500-1.750", "a-0.000-0.700", "a-4.100-5.000"]
    for i, (begin, end) in enumerate(((8_000, 28_000), (0, 11_200), (65_600, 80_000))):
        np.testing.assert_array_equal(source.audio(i), whole[begin:end])
        np.testing.assert_array_equal(source.audio(i, 100, 50), whole[begin + 100 : begin + 150])


BAD_ROWS = {
    "offset": ({"offset": "soon"}, "has offset 'soon', which is no number of seconds"),
    "negative": ({"offset": -1}, "no number of seconds"),
    "nan": ({"offset": 0.0, "duration": float("nan")}, "no number of seconds"),
    "nothing": ({"offset": 0.1, "duration": 0}, "duration of 0 s"),
    "beyond": ({"offset": 0.5, "duration": 0.7}, r"is the part from 0.50 s to 1.20 s of a file of 1.00 s"),
    "past the end": ({"offset": 2.5}, r"is the part from 2.50 s to the end of a file of 1.00 s"),
    "rounded": ({"duration": 2}, r"is 1.00 s long, and its manifest says 2; mend the duration"),
    "channel": ({"channel": "left"}, "has channel 'left'"),
    "out": ({"audio": "../u0.flac"}, "leads out of"),
    "missing": ({"audio": "none.flac"}, "does not exist"),
    "no audio": ({"audio": 5}, 'is not a JSON object with "audio"'),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_are_named_in_every_mode(kind, tmp_path, waves):
    change, reason = BAD_ROWS[kind]
    names = files(tmp_path, waves)
    rows = [{"audio": names[1], "text": "GOOD"}, {"audio": names[0], "text": "BAD"} | change]
    write_lines(tmp_path / "list.jsonl", json_lines(rows))
    source, problems = opened(tmp_path / "list.jsonl", max_bad=1)
    assert len(source) == 1 and len(problems) == 1
    config = get_config()
    config.update({"data": str(tmp_path / "list.jsonl"), "workers": 0})
    prepare(config, tmp_path / "prepared")
    (rejected,) = map(json.loads, (tmp_path / "prepared/rejected.jsonl").read_text().splitlines())
    for said in (problems[0].reason, rejected["reason"]):
        assert re.search(reason, said), said


def test_durations_that_are_believed_are_checked_when_audio_is_read(tmp_path, waves, monkeypatch):
    """Of very many files headers are not read when they are listed."""
    monkeypatch.setattr(entries, "_MANY", 1)
    names = files(tmp_path, waves)
    rows = [{"audio": n, "text": "A", "duration": seconds(k)} for n, k in zip(names, LENGTHS, strict=True)]
    rows[2]["duration"] += 0.3
    rows[3] |= {"offset": 0.0, "duration": seconds(LENGTHS[3]) + 0.3}
    write_lines(tmp_path / "list.jsonl", json_lines(rows))
    source, problems = opened(tmp_path / "list.jsonl")
    assert not problems
    for i, wave in enumerate(waves):
        if i in (2, 3):
            with pytest.raises(entries.AudioError, match=r"manifest says|too early"):
                source.audio(i)
        else:
            np.testing.assert_array_equal(source.audio(i), wave)


def lhotse_cut(**changes):
    whole = {"start": 0.0, "duration": 1.0, "channel": 0}
    return {"id": "bad", **whole, "supervisions": [], "recording": lhotse_recording("audio/u0.flac", RATE)} | changes


def source_of(kind, source):
    return {"sources": [{"type": kind, "channels": [0], "source": source}], "sampling_rate": RATE, "duration": 1.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"recording": {"id": "r", **source_of("command", "touch hacked; cat u0.flac |")}}, "never run"),
        ({"recording": {"id": "r", **source_of("memory", "aGk=")}}, "inside the manifest"),
        ({"recording": {"id": "r", **source_of("url", "https://example.org/a.flac")}}, "download it"),
        ({"recording": {"id": "r", **source_of("file", "../../u0.flac")}}, "leads out of"),
        ({"recording": None}, "features alone"),
        ({"tracks": []}, "MixedCut"),
        ({"recording": {"id": "r", "transforms": [{"name": "Speed"}], **source_of("file", "a")}}, "transforms"),
        ({"start": None}, "no number of seconds|is no cut"),
        ({"recording": {"id": "r"}}, "is no cut, supervision or recording"),
        ({"recording": {"id": "r", **source_of("file", "audio/u1.flac")}, "start": 9.0}, "is the part from 9.00 s"),
    ],
)
def test_bad_cuts_are_named(change, reason, tmp_path, waves, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files(tmp_path, waves)
    rows = [lhotse_cut(id="good"), lhotse_cut(**change)]
    write_lines(tmp_path / "cuts.jsonl", json_lines(rows))
    source, problems = opened(tmp_path / "cuts.jsonl", max_bad=1, need_text=False)
    assert len(source) == 1 and not (tmp_path / "hacked").exists()
    (problem,) = problems
    assert problem.id == "bad" and re.search(reason, problem.reason), problem


def test_bad_lines_of_kaldi_are_named_and_commands_never_run(tmp_path, waves):
    files(tmp_path, waves)
    lines = [f"good audio/u0.flac\npipe touch {tmp_path}/hacked; cat audio/u0.flac |\nark raw.ark:15\nout ../u0.flac"]
    write_lines(tmp_path / "wav.scp", [*lines, "empty"])
    write_lines(tmp_path / "segments", ["a good 0 0.5", "b pipe 0 1", "c nobody 0 1", "d good 1 x", "e good 0.5 0.4"])
    write_lines(tmp_path / "text", [*(f"{name} A" for name in "abcde"), "f A"])
    source, problems = opened(tmp_path, max_bad=9)
    assert [source.id(i) for i in range(len(source))] == ["a"] and source.samples.tolist() == [8_000]
    said = {problem.id: problem.reason for problem in problems}
    assert said.keys() == set("bcdef") and not (tmp_path / "hacked").exists()
    assert "never run" in said["b"] and "lacks" in said["c"] and "END" in said["d"] and "ends at" in said["e"]
    assert said["f"] == "has a transcript but no audio"
    (tmp_path / "segments").unlink()
    said = {problem.id: problem.reason for problem in opened(tmp_path, max_bad=99, need_text=False)[1]}
    assert "archive" in said["ark"] and "leads out" in said["out"] and said["empty"] == "has no file"


def test_bad_lines_of_tables_are_named(tmp_path, waves):
    files(tmp_path, waves)
    good = "audio/u0.flac,ONE"
    write_lines(tmp_path / "list.csv", ["path,sentence", good, ",TWO", "audio/u1.flac,A,B", "none.flac,X"])
    with (tmp_path / "list.csv").open("ab") as file:
        file.write(b"audio/u2.flac,\xff\xfe\n")
    source, problems = opened(tmp_path / "list.csv", max_bad=9)
    assert len(source) == 1
    assert [problem.id for problem in problems] == ["list.csv:3", "list.csv:4", "none", "list.csv:6"]
    said = " ".join(problem.reason for problem in problems)
    assert "header must name" in said and "more fields" in said and "not UTF-8" in said and "does not exist" in said
    write_lines(tmp_path / "other.csv", ["name,age", "a,5"])
    with pytest.raises(UserError, match=r"other.csv has no line of the form path, sentence.*header must name"):
        opened(tmp_path / "other.csv")


def test_quotation_marks_in_tables_of_tabs_are_said(tmp_path, waves):
    write_lines(tmp_path / "list.tsv", ["path\tsentence", *(f'{n}\t"HE SAID' for n in files(tmp_path, waves))])
    source, problems = opened(tmp_path / "list.tsv")
    assert len(source) == 5 and source.text(4) == '"HE SAID' and not problems


def test_bad_rows_of_parquet_are_named(tmp_path, waves):
    names = files(tmp_path, waves)
    data = [(tmp_path / names[0]).read_bytes(), None, b"no audio", None, None]
    paths = [None, None, None, names[1], "../../etc/hostname"]
    audio = [{"bytes": b, "path": p} for b, p in zip(data, paths, strict=True)]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"audio": pa.array(audio, kind), "text": ["A"] * 5}), tmp_path / "x.parquet")
    source, problems = opened(tmp_path / "x.parquet", max_bad=9)
    assert source.samples.tolist() == [LENGTHS[0], LENGTHS[1]]
    said = [problem.reason for problem in problems]
    assert "no audio in its row" in said[0] and "cannot be decoded" in said[1] and "leads out of" in said[2]
    (tmp_path / "y.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UserError, match=r"y.parquet has no line of the form.*cannot be read"):
        opened(tmp_path / "y.parquet")


def test_a_damaged_gzip_is_named(tmp_path):
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(b'{"audio": "a.wav"}\n' * 1000)[:-20])
    with pytest.raises(UserError, match="gzipped and damaged"):
        opened(tmp_path / "cuts.jsonl.gz")


def test_supervisions_without_recordings_say_what_is_missing(tmp_path):
    write_gz(tmp_path / "x_supervisions_dev.jsonl.gz", [{"id": "s", "recording_id": "r", "start": 0, "duration": 1}])
    with pytest.raises(UserError, match=r"put their recordings beside it, as x_recordings_dev.jsonl.gz"):
        opened(tmp_path / "x_supervisions_dev.jsonl.gz")


def test_a_folder_without_audio_names_its_manifests(tmp_path):
    (tmp_path / "my_list.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"holds no audio files .*name one of its manifests, such as .*my_list.jsonl"):
        opened(tmp_path)
