"""What is wrong with a line, a row or a file of any form is named, and nothing that it names is run."""

import gzip
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.prepare import get_config
from sew_jax.data import entries
from sew_jax.data.prepare import prepare
from sew_jax.errors import UserError
from tests.data.forms import (
    LENGTHS,
    MAKERS,
    RATE,
    TEXTS,
    files,
    json_lines,
    lhotse_recording,
    make_cut_with_supervisions,
    make_cuts,
    make_fairseq,
    make_nemo_segments,
    make_ours,
    make_supervisions,
    opened,
    random_waves,
    write_gz,
    write_lines,
)


@pytest.fixture(scope="module")
def waves():
    return random_waves()


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
    "web": ({"audio": "https://example.org/a.wav"}, "lies at https://, which is not read; download it"),
    "hadoop": ({"audio": "hdfs://x/a.wav"}, "lies at hdfs://"),
    "drive": ({"audio": "C:\\data\\a.wav"}, r"does not exist"),
    "backwards": ({"start": 0.6, "end": 0.2}, "no number of seconds"),
    "span beyond": ({"start": 5, "end": 5.5}, r"is the part from 5.00 s to 5.50 s of a file of 1.00 s"),
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


def test_what_a_table_of_tabs_quotes_for_its_marks_is_read(tmp_path, waves):
    rows = [f'{n}\t"HE SAID ""{t}"""' for n, t in zip(files(tmp_path, waves), "ABCDE", strict=True)]
    write_lines(tmp_path / "list.tsv", ["path\tsentence", *rows[:4], rows[4].replace('""', "")])
    source, _ = opened(tmp_path / "list.tsv")
    assert [source.text(i) for i in (0, 3, 4)] == ['HE SAID "A"', 'HE SAID "D"', '"HE SAID E"']


def test_a_text_that_is_not_a_number_is_missing(tmp_path, waves):
    """pandas writes NaN where a table has no text."""
    rows = [
        {"audio": n, "text": t} for n, t in zip(files(tmp_path, waves), (float("nan"), 7, "A", "B", "C"), strict=True)
    ]
    write_lines(tmp_path / "list.jsonl", json_lines(rows))
    source, problems = opened(tmp_path / "list.jsonl", max_bad=1)
    assert [source.text(i) for i in range(4)] == ["7", "A", "B", "C"]
    assert problems[0].reason == "has no transcript"


def test_lists_of_words_are_as_long_as_those_of_files(tmp_path, waves):
    for lines in (TEXTS[:-1], (*TEXTS, "ONE MORE")):
        make_fairseq(tmp_path, waves)
        write_lines(tmp_path / "train.wrd", lines)
        with pytest.raises(UserError, match=rf"train.wrd has {len(lines)} lines, and train.tsv lists 5 files"):
            opened(tmp_path / "train.tsv")
    write_lines(tmp_path / "train.wrd", [*TEXTS[:-1], ""])
    assert opened(tmp_path / "train.tsv")[0].text(4) == ""  # nothing was said


def test_what_is_named_twice_is_named(tmp_path, waves):
    files(tmp_path, waves)
    write_lines(tmp_path / "wav.scp", ["a audio/u0.flac", "a audio/u1.flac"])
    write_lines(tmp_path / "text", ["a ONE"])
    source, problems = opened(tmp_path, max_bad=1)
    assert source.samples.tolist() == [LENGTHS[0]] and problems[0].reason == "names recording a again"
    for name in ("wav.scp", "text"):
        (tmp_path / name).unlink()
    write_lines(tmp_path / "audio/x.trans.txt", ["u0 A", "u1 B", "u0 C", "u1 B"])
    source, problems = opened(tmp_path, "", max_bad=9)
    assert [source.text(i) for i in range(len(source))] == ["B"]
    assert problems[0].reason == "has two transcripts in x.trans.txt"


def test_samples_in_place_of_files_are_named(tmp_path):
    """What is left of audio after `datasets` decoded it."""
    for name, value in (("a", [0.0, 0.1]), ("b", {"array": [0.0, 0.1], "sampling_rate": RATE, "path": "a.wav"})):
        pq.write_table(pa.table({"audio": [value], "text": ["A"]}), tmp_path / f"{name}.parquet")
        with pytest.raises(UserError, match=rf"{name}.parquet: its column audio holds decoded samples"):
            opened(tmp_path / f"{name}.parquet", "")


def test_data_at_an_address_that_is_not_read():
    with pytest.raises(UserError, match=r"data: https://example.org/x lies at https://, which is not read"):
        opened("https://example.org/x")


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
    files(tmp_path, random_waves()[:1])
    with pytest.raises(UserError, match=r"has no transcripts in split .*such as .*my_list.jsonl"):
        opened(tmp_path, "")


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__.removeprefix("make_"))
def test_a_spoiled_manifest_is_read_or_named(make, tmp_path, waves):
    """Bytes changed, cut and put in at random, in all that is no audio."""
    data, random = make(tmp_path, waves), np.random.default_rng(3)
    known = [p for p in sorted(tmp_path.rglob("*")) if p.is_file() and p.suffix not in (".flac", ".wav")]
    whole = {path: path.read_bytes() for path in known}
    for turn in range(30):
        path = known[turn % len(known)]
        content = bytearray(whole[path])
        for place in random.integers(0, len(content), 4).tolist():
            content[place] = int(random.integers(0, 256)) if turn % 2 else b'\t",{}[]0-|\n\0'[random.integers(0, 12)]
        path.unlink()  # not in place: it may be mapped into memory
        path.write_bytes(bytes(content[: random.integers(0, len(content) + 1)] if turn % 3 == 0 else content))
        try:
            source, problems = opened(data, "", max_bad=10**6, need_text=False)
            assert len(source) and all(problem.id and problem.reason for problem in problems)
            for i in range(len(source)):
                try:
                    source.audio(i)
                except entries.AudioError as error:
                    assert str(error)
        except UserError as error:
            assert str(error)
        path.unlink()
        path.write_bytes(whole[path])


WRONG = (None, True, -1, 1e400, "x", "", [], {}, [1], {"a": 1}, "\0", "\ud800", "../" * 40, "a" * 5000, 2**70)


@pytest.mark.parametrize(
    "make", [make_ours, make_nemo_segments, make_cuts, make_cut_with_supervisions, make_supervisions]
)
def test_any_value_of_any_key_is_read_or_named(make, tmp_path, waves):
    path = make(tmp_path, waves)
    content = path.read_bytes()
    first = json.loads((gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()[0])

    def places(value, at=()):
        yield at
        below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in below:
            yield from places(inner, (*at, key))

    for at in places(first):
        for wrong in WRONG:
            row = json.loads(json.dumps(first))
            if at:
                inner = row
                for key in at[:-1]:
                    inner = inner[key]
                inner[at[-1]] = wrong
            else:
                row = wrong
            path.write_text(json.dumps(row) + "\n")
            try:
                source, problems = opened(path, "", max_bad=10**6, need_text=False)
                assert len(source) + len(problems)
            except UserError as error:
                assert str(error)
