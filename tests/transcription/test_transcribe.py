"""Transcription of a whole run: against evaluation, in every form, with audio that is none among the rest."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from configs import evaluate as evaluate_config
from configs import transcribe as transcribe_config
from sew_jax.errors import UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.evaluation.outputs import write_tradeoff
from sew_jax.transcription.transcribe import transcribe
from tests.evaluation.test_tradeoff import point
from tests.runs import begin_finetuned

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("transcribe")
    corpus = begin_finetuned(root)
    waves = [soundfile.read(path, dtype="int16")[0] for path in sorted((corpus / "train").rglob("*.flac"))]
    soundfile.write(root / "long.wav", np.concatenate(waves), 16_000)  # 13 s
    return root


def configured(runs, *audio, **changes):
    config = transcribe_config.get_config()
    config.init_from, config.audio = str(runs / "finetune"), ",".join(map(str, audio))
    config.input.batch_seconds = 6.0
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture
def said(runs, tmp_path, capsys):
    """What is on standard output."""

    def run(*audio, **changes):
        capsys.readouterr()
        transcribe(configured(runs, *audio, **changes), tmp_path / "workdir")
        return capsys.readouterr().out

    return run


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def test_short_files_read_as_in_evaluation(runs, said, tmp_path):
    config = evaluate_config.get_config()
    config.data, config.init_from = str(runs / "corpus"), str(runs / "finetune")
    config.settings, config.repeats = "s2q1k1", 1
    evaluate(config, tmp_path)
    expected = [json.loads(line) for line in next(tmp_path.glob("transcripts/*s2q1k1*.jsonl")).read_text().splitlines()]
    found = rows(said(runs / "corpus" / "test", setting="s2q1k1"))
    assert [row["text"] for row in found] == [row["hypothesis"] for row in expected] and any(r["text"] for r in found)
    assert [Path(row["audio"]).stem for row in found] == [row["id"] for row in expected]
    assert all(row["setting"] == "s2q1k1" for row in found)


def check_words(row):
    assert " ".join(word["word"] for word in row["words"]) == row["text"]
    times = [time for word in row["words"] for time in (word["begin"], word["end"])]
    assert times == sorted(times) and all(0 <= time <= row["seconds"] for time in times)
    confidences = [word["confidence"] for word in row["words"]]
    assert all(0 < c <= 1 for c in confidences)
    assert row["confidence"] == pytest.approx(np.mean(confidences), abs=1e-4)


@pytest.mark.parametrize("setting", ["s1q1k1", "s2q1k1"])
def test_long_audio_reads_the_same_whatever_it_is_batched_with(runs, said, setting):
    """Files of many lengths beside it change the batches, not the text; and order is that of the command line."""
    long, short = runs / "long.wav", runs / "corpus" / "test" / "2" / "1" / "2-1-0001.flac"
    chunks = {"setting": setting, "chunk_seconds": 2.5, "overlap_seconds": 0.5}
    (alone,) = rows(said(long, **chunks))
    together = rows(said(short, long, short, long, **chunks, **{"input.batch_seconds": 30.0}))
    assert [row["audio"] for row in together] == [str(short), str(long)] * 2
    assert together[0] == together[2] and together[1] == together[3] == alone
    check_words(alone)
    assert alone["seconds"] == soundfile.info(long).frames / 16_000 and alone["words"][-1]["end"] > 10
    (whole,) = rows(said(long, setting=setting))
    assert whole["text"] != alone["text"]  # there were chunks


def test_any_container_and_standard_input(runs, said, tmp_path, monkeypatch):
    wave, rate = soundfile.read(runs / "long.wav", dtype="float32")
    soundfile.write(tmp_path / "a,stereo.wav", np.stack([wave, wave], 1), rate, subtype="FLOAT")
    soundfile.write(tmp_path / "b.dat", wave, rate, format="FLAC", subtype="PCM_16")
    soundfile.write(tmp_path / "c.ogg", wave[:40_000].repeat(3), 48_000)
    (expected,) = rows(said(runs / "long.wav"))
    (stereo,) = rows(said(tmp_path / "a,stereo.wav"))
    assert stereo["text"] == expected["text"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((runs / "long.wav").read_bytes())))
    found = rows(said("-", tmp_path / "b.dat", tmp_path / "c.ogg"))
    assert [row["audio"] for row in found] == ["-", str(tmp_path / "b.dat"), str(tmp_path / "c.ogg")]
    assert found[0]["text"] == found[1]["text"] == expected["text"] and found[2]["seconds"] == 2.5


def test_a_pipe_and_a_recording_that_was_never_finished(runs, said, tmp_path):
    """`sew-jax ... --config.audio=<(arecord ...)`: the header knows no size, and nothing can be read twice."""
    data = bytearray((runs / "long.wav").read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = b"\0\0\0\0"
    (tmp_path / "unfinished.wav").write_bytes(data)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,), daemon=True)
    writer.start()
    expected, unfinished, pipe = rows(said(runs / "long.wav", tmp_path / "unfinished.wav", tmp_path / "pipe"))
    writer.join(timeout=60)
    assert unfinished["text"] == pipe["text"] == expected["text"] and pipe["seconds"] == expected["seconds"]


def test_formats(runs, said, tmp_path):
    folder, long = runs / "corpus" / "test", runs / "long.wav"
    (row,) = rows(said(long))
    assert said(long, format="text") == row["text"] + "\n"
    lines = said(folder, format="text").splitlines()
    assert lines == [f"{row['audio']}\t{row['text']}" for row in rows(said(folder))]
    shown = said(long, format="srt")
    assert shown.startswith("1\n00:00:0")
    assert "".join(re.findall(r"[A-Z']", shown)) == row["text"].replace(" ", "")  # a word longer than a line is broken
    assert said(long, format="vtt").startswith("WEBVTT\n\n00:00:0")
    files = said(folder, format="srt").split()
    names = [f"2/1/2-1-{i:04d}.srt" for i in range(5)]
    assert files == [str(tmp_path / "workdir" / name) for name in names]
    one = sorted(folder.rglob("*.flac"))[0]
    assert Path(files[0]).read_text() == said(one, format="srt")


def test_what_cannot_be_read_is_named_and_the_rest_is_done(runs, tmp_path, capsys):
    """A truncated file fails only when it is read to its end, after chunks of it have been computed."""
    sound, broken, empty = runs / "corpus" / "test", tmp_path / "broken.flac", tmp_path / "empty.wav"
    long = np.random.default_rng(0).normal(size=160_000) * 0.1
    soundfile.write(broken, long, 16_000)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 9 // 10])
    empty.touch()
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    named = (broken, empty, nothing, tmp_path / "nowhere.wav", sound, runs / "long.wav")
    small = {"chunk_seconds": 2.5, "overlap_seconds": 0.5}
    with pytest.raises(UserError, match="4 of 10 could not be transcribed"):
        transcribe(configured(runs, *named, **small), tmp_path / "workdir")
    captured = capsys.readouterr()
    assert [Path(row["audio"]).name for row in rows(captured.out)] == [
        *(f"2-1-{i:04d}.flac" for i in range(5)),
        "long.wav",
    ]
    for path, reason in ((empty, "is empty"), (nothing, "holds no audio files"), (named[3], "does not exist")):
        assert f"  ! {path} {reason}" in captured.err
    assert re.search(rf"  ! {broken} (cannot be decoded|is truncated).*; it is left out", captured.err)


@pytest.mark.parametrize(
    ("audio", "changes", "message"),
    [
        ("", {}, "audio is empty"),
        ("nowhere.wav", {}, "1 of 1 could not be transcribed"),
        ("LONG", {"format": "docx"}, "'docx' is unknown; choose one of jsonl, text, srt, vtt"),
        ("LONG,LONG", {"format": "srt"}, "would both be written to"),
        ("LONG", {"setting": "fast"}, "setting 'fast' is unknown"),
        ("LONG", {"setting": "s1q1k1", "budget": "0.5"}, "both given"),
        ("LONG", {"init_from": "nowhere"}, "init_from: "),
        ("LONG", {"overlap_seconds": 30.0}, "chunk_seconds: 30 must be at least"),
        ("LONG", {"lm": "nowhere.arpa"}, "nowhere.arpa"),
        ("LONG", {"lm": "none", "beam.beam": 0}, "beam: beam=0"),
    ],
    ids=str,
)
def test_bad_input(runs, tmp_path, capsys, audio, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        transcribe(configured(runs, audio.replace("LONG", str(runs / "long.wav")), **changes), tmp_path)
    assert capsys.readouterr().out == ""


def test_a_lexicon_s_words_alone(runs, said, tmp_path):
    (tmp_path / "words.txt").write_text("ONE\nTWO\nTHREE\n")
    chunks = {"chunk_seconds": 2.5, "overlap_seconds": 0.5}
    lexicon = {"lm": "none", "beam.lexicon": str(tmp_path / "words.txt"), "beam.word_score": 2.0}
    (row,) = rows(said(runs / "long.wav", **chunks, **lexicon))
    assert row["text"] and set(row["text"].split()) <= {"ONE", "TWO", "THREE"}
    check_words(row)


def test_few_programs_serve_many_lengths(runs, tmp_path, capsys):
    random = np.random.default_rng(0)
    for i in range(12):
        samples = int(random.integers(200, 100_000))
        soundfile.write(tmp_path / f"{i:02d}.wav", random.normal(size=samples) * 0.1, 16_000)
    transcribe(configured(runs, tmp_path, chunk_seconds=4.0, overlap_seconds=1.0), tmp_path / "workdir")
    captured = capsys.readouterr()
    assert len(rows(captured.out)) == 12
    assert int(re.search(r"compiled (\d+) programs", captured.err)[1]) <= 3  # 4 s, 2.9 s and 2 s


def command(runs, audio, **pipes):
    words = [sys.executable, "-m", "sew_jax.main", "--config=configs/transcribe.py", f"--config.audio={audio}"]
    words += [f"--config.init_from={runs / 'finetune'}", f"--workdir={runs / 'workdir'}"]
    return subprocess.Popen(words, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, text=True, **pipes)


def test_the_command_line(runs):
    """Results alone on standard output; a reader that leaves early is no failure that prints a trace."""
    audio = f"{runs / 'corpus' / 'test'},nowhere.wav"
    done = command(runs, audio, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    left = command(runs, audio, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    left.stdout.close()
    out, err = done.communicate(timeout=300)
    assert done.returncode == 2 and len(rows(out)) == 5
    assert err.splitlines()[-1].startswith("error: audio: 1 of 6") and "Traceback" not in err
    err = left.stderr.read()
    assert left.wait(timeout=300) == 1 and "Traceback" not in err and "Exception" not in err, err


def test_a_run_time_reads_as_the_model_does(runs, said, tmp_path):
    """Named, or picked by a budget from a table."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    audio = runs / "corpus" / "test"
    expected = rows(said(audio, setting="s2q1k1"))
    found = rows(said(audio, setting="s2q1k1", runtime="onnxruntime"))
    assert [row["text"] for row in found] == [row["text"] for row in expected]
    points = [point(), point("s2q1k1", 0.11, 0.5, engine=("onnxruntime", "float32"))]
    write_tradeoff(points, tmp_path)
    assert rows(said(audio, budget="0.5", tradeoff=str(tmp_path))) == found
