"""Labels of frames: segments of a manifest, cut and played faster; each frame has that of its middle."""

import collections
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from configs import prepare as prepare_config
from sew_jax.data.batch_plan import BatchPlan
from sew_jax.data.entries import Entry
from sew_jax.data.labels import FrameLabels, choose_labels
from sew_jax.data.pipeline import Batches
from sew_jax.data.prepare import _said, prepare
from sew_jax.data.segments import Cutter, Segment, read_segments, write_segments
from sew_jax.data.sources import open_source
from sew_jax.errors import UserError

OPTIONS = dict(min_samples=1, need_text=True, max_bad=0, target="segments")


def drawn_segments(seed, seconds=3.0):
    random = np.random.default_rng(seed)
    edges = np.sort(random.uniform(0, seconds, (4, 2)), axis=1).tolist()
    return [Segment(*edge, "abcd"[i]) for i, edge in enumerate(edges)]


def by_hand(segments, samples, hop, pace=1.0):
    names = []
    for t in range(samples // hop):
        middle = (t + 0.5) * hop / 16_000 * pace
        over = [part for part in sorted(segments, key=lambda part: part.start) if part.start <= middle < part.end]
        names.append(over[-1].label if over else "none")
    return names


@pytest.mark.parametrize("hop", [320, 640])
@pytest.mark.parametrize("pace", [1.0, 0.83])
def test_a_frame_has_the_label_of_its_middle(hop, pace):
    labels = FrameLabels(("a", "b", "c", "d", "none"), hop)
    for seed in range(20):
        segments = drawn_segments(seed)
        samples = 40_000 + 317 * seed
        told = labels.decode(labels.read(write_segments(segments), samples // hop, pace))
        assert labels.split(told) == by_hand(segments, samples, hop, pace)
        assert labels.decode(labels.encode(told)) == told
        assert labels.count_symbols(np.array([samples]))[0] == len(labels.split(told))


def test_a_part_has_its_part_of_the_segments():
    """Whatever frames lie in a part keep their labels."""
    labels = FrameLabels(("a", "b", "c", "d", "none"))
    for seed in range(20):
        text = write_segments(drawn_segments(seed))
        whole, cutter = labels.read(text, 150).tolist(), Cutter(text)
        for begin, end in ((0, 30), (30, 90), (95, 130), (130, 150)):
            assert labels.read(cutter.cut(begin / 50, end / 50), end - begin).tolist() == whole[begin:end]
    assert read_segments(Cutter(write_segments([Segment(0, 1, "a")])).cut(1, 2)) == []


def chosen(source):
    return choose_labels(source, FrameLabels(()), None)[0]


def write(folder, rows):
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def audio(tmp_path):
    """Three files of 2 s that count their own samples, so that what is read says where it lay."""
    wave = (np.arange(32_000) % 4000 * 8).astype(np.int16)
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", wave, 16_000)
    return tmp_path


def test_what_a_manifest_may_say(audio):
    """Names of a few kinds, no segment at all, and a table's cell of JSON; an unknown field does not hurt."""
    rows = [
        {"audio": "0.wav", "segments": [{"start": 0.5, "end": 1, "label": "two words", "text": "x"}]},
        {"audio": "1.wav", "segments": []},
        {"audio": "2.wav", "segments": '[{"start_time": 1.5, "end_time": "2.0", "label": 3}]'},
    ]
    source, _ = open_source(str(write(audio, rows)), "", **OPTIONS)
    assert [read_segments(source.text(i)) for i in range(3)] == [[(0.5, 1, "two_words")], [], [(1.5, 2, "3")]]
    assert chosen(source).names == ("3", "none", "two_words")


GOOD = {"start": 0, "end": 1, "label": "a"}
WRONG = {
    "no end": (
        [GOOD, {"start": 0, "label": "a"}],
        "has segment 2, which has end 'None', which is no",
    ),
    "backwards": ([{"start": 1, "end": 0.5, "label": "a"}], "has segment 1, which ends before it begins"),
    "before its begin": ([{"start": -1, "end": 0.5, "label": "a"}], "has segment 1, which has start '-1', which is no"),
    "a truth": ([{"start": True, "end": 1, "label": "a"}], "has segment 1, which has start 'True', which is no"),
    "not finite": (
        [{"start": 0, "end": float("inf"), "label": "a"}],
        "has segment 1, which has end 'inf'",
    ),
    "of a recogniser": ([{"start": 0, "end": 1, "text": "hello"}], 'has segment 1, which has no "label"'),
    "no list": (GOOD, "which are no list"),
    "no objects": ([1, 2], "has segment 1 '1', which has no"),
    "no JSON": ("0-1 a", "has segments '0-1 a', which are no JSON"),
    "milliseconds": (
        [GOOD, {"start": 300, "end": 1250, "label": "a"}],
        "has a segment from 300.00 s on",
    ),
    "none at all": (None, "has no segments"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_segment_is_told(case, audio):
    """By the task that needs them, and by no other."""
    segments, message = WRONG[case]
    good = {"audio": "0.wav", "segments": [GOOD], "text": "x"}
    path = write(audio, [good, {"audio": "1.wav", "segments": segments, "text": "y"}])
    source, problems = open_source(str(path), "", **OPTIONS | {"max_bad": 1})
    assert len(source) == 1 and len(problems) == 1
    assert problems[0].id == "1" and message in problems[0].reason
    assert len(open_source(str(path), "", **OPTIONS | {"target": "text"})[0]) == 2
    with pytest.raises(UserError, match=r"has no segments in split \(all\); give a manifest whose rows have"):
        open_source(str(write(audio, [{"audio": "0.wav", "text": "x"}])), "", **OPTIONS)


def test_labels_stay_with_their_audio_when_it_is_played_faster(audio):
    """The wave counts its samples up to 4,000 again and again: each quarter of a second has a label of its own."""
    segments = [{"start": i / 4, "end": (i + 1) / 4, "label": f"{i}"} for i in range(8)]
    source, _ = open_source(str(write(audio, [{"audio": "0.wav", "segments": segments}])), "", **OPTIONS)
    labels = chosen(source)
    longest = np.ceil(source.samples / 0.8).astype(int)
    plan = BatchPlan(longest, {int(longest.max()): 1}, seed=0, shuffle=False)
    symbols_U = labels.count_symbols(longest)
    batches = Batches(source, plan, seed=0, vocabulary=labels, symbols_U=symbols_U, start=0, stop=6, speed=0.2)
    lengths = set()
    for i in range(6):
        arrays = batches[i].arrays
        (wave,), (length,), (count,) = arrays["wave"], arrays["length"], arrays["label_length"]
        lengths.add(int(length))
        assert count == length // 320
        falls = np.flatnonzero(np.diff(wave[:length].astype(int)) < -8000)  # where a quarter ends
        changes = np.flatnonzero(np.diff(arrays["labels"][0, :count])) + 1
        quarters = falls[np.concatenate([[True], np.diff(falls) > 1000])]
        np.testing.assert_allclose(changes * 320, quarters[: len(changes)], atol=320)
        assert len(changes) == 7
    assert len(lengths) > 3


def test_a_label_that_frames_have_at_some_paces_alone(audio):
    """Eight milliseconds between the middles of two frames, and an end that no segment covers."""
    segments = [{"start": 0, "end": 1, "label": "speech"}, {"start": 1.011, "end": 1.019, "label": "click"}]
    segments.append({"start": 1.0, "end": 1.9905, "label": "speech"})
    source, _ = open_source(str(write(audio, [{"audio": "0.wav", "segments": segments}])), "", **OPTIONS)
    labels = chosen(source)
    assert labels.names == ("click", "none", "speech")
    assert {*labels.read(source.text(0), 100).tolist()} == {2}  # at its own pace neither has any
    counts = np.zeros(3, int)
    for pace in np.linspace(0.8, 1.2, 41):
        counts += np.bincount(labels.read(source.text(0), int(32_000 / pace) // 320, pace), minlength=3)
    assert (counts > 0).all()


def test_tables_have_them_too(audio):
    """A column of lists in Parquet, and one of JSON under a header of capitals."""
    segments = [[{"start": 0.5, "end": 1.0, "label": "a"}], []]
    rows = {"audio": [str(audio / "0.wav"), str(audio / "1.wav")], "segments": segments}
    pq.write_table(pa.table(rows), audio / "train.parquet")
    lines = ["Audio\tSegments", f"0.wav\t{json.dumps(segments[0])}", "1.wav\t[]"]
    (audio / "table.tsv").write_text("\n".join(lines) + "\n")
    for path in ("train.parquet", "table.tsv"):
        source, _ = open_source(str(audio / path), "", **OPTIONS)
        assert [read_segments(source.text(i)) for i in range(2)] == [[(0.5, 1, "a")], []]


def test_data_without_segments_are_those_that_were_prepared_before():
    """What `prepare` takes a digest of says nothing of a field that has come later."""
    before = collections.namedtuple("Entry", [name for name in Entry._fields if name != "segments"])
    entry = Entry("a", "b.wav", text="it's", label="c", samples=5)
    said = entry._asdict()
    assert said.pop("segments") is None and _said(entry) == repr(before(**said))
    assert _said(entry._replace(segments="[]")) != _said(entry)


def test_prepared_data_keep_them_also_in_pieces(audio, tmp_path):
    """A long recording without a text is cut at its pauses, and each piece has its own part."""
    random = np.random.default_rng(0)
    speech = random.normal(size=16_000 * 30) * 0.1
    for second in range(0, 30, 3):
        speech[16_000 * second : 16_000 * second + 8000] *= 0.001
    soundfile.write(audio / "long.wav", speech, 16_000)
    segments = [{"start": s + 0.5, "end": s + 3, "label": "loud"} for s in range(0, 30, 3)]
    rows = [{"audio": "long.wav", "segments": segments}, {"audio": "0.wav", "segments": segments[:1]}]
    config = prepare_config.get_config()
    config.data, config.transcripts = str(write(audio, rows)), "optional"
    config.cut_seconds = 10.0
    prepare(config, tmp_path / "prepared")
    source, _ = open_source(str(tmp_path / "prepared"), "", **OPTIONS)
    labels = chosen(source)
    assert labels.names == ("loud", "none") and len(source) > 3
    for i in range(len(source)):
        if source.id(i) == "0":
            assert read_segments(source.text(i)) == [(0.5, 3, "loud")]
            continue
        names = np.array(labels.names)[labels.read(source.text(i), int(source.samples[i]) // 320)]
        wave = source.audio(i)[: len(names) * 320].reshape(len(names), 320).astype(float)
        loud = wave.std(1) > 300
        assert ((names == "loud") == loud).mean() > 0.97
