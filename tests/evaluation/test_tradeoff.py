"""The table's files, front and text."""

import csv
import dataclasses
import json
import re

import pytest

from sew_jax.errors import UserError
from sew_jax.evaluation.outputs import format_table, write_tradeoff
from sew_jax.evaluation.tradeoff import Point, mark_front, read_tradeoff, ways


def point(
    setting="s1q1k1", wer=0.1, seconds=2.0, trained=True, split="test", decoder="greedy", engine=("jax", "float32")
):
    return Point(
        setting=setting,
        split=split,
        decoder=decoder,
        wer=wer,
        wer_low=0.8 * wer,
        wer_high=1.3 * wer,
        cer=wer / 3,
        substitutions=3,
        deletions=2,
        insertions=1,
        words=60,
        utterances=20,
        seconds=seconds,
        seconds_min=seconds * 0.9,
        seconds_max=seconds * 1.2,
        repeats=5,
        decode_seconds=0.0,
        lm_weight=None,
        word_score=None,
        audio_seconds=100.0,
        rtf=seconds / 100,
        relative_time=seconds / 2,
        macs_per_s=1e9,
        relative_macs=seconds / 2,
        device="cpu",
        dtype=engine[1],
        trained=trained,
        runtime=engine[0],
    )


POINTS = [
    point(),
    point("s2q1k1", 0.12, 1.0),
    point("s3q1k1", 0.12, 1.5),
    point("s4q1.2k1", 0.2, 1.0, trained=False),
    point("s1q2k1", 0.1, 2.0),
]


def test_the_front_is_what_nothing_beats():
    assert [r.on_front for r in mark_front(POINTS)] == [True, True, False, False, True]
    moved = point("s1q1k1", 0.098, 0.5, engine=("jax", "int8"))  # by 0.2 %: no budget picks it
    assert [r.on_front for r in mark_front([*POINTS, moved])] == [True, True, False, False, True, False]
    held = dataclasses.replace(moved, wer=0.0995)
    assert [r.on_front for r in mark_front([*POINTS, held])] == [False, False, False, False, False, True]


def test_each_split_has_its_front_and_decoders_share_it():
    points = [
        *POINTS[:2],
        point(split="dev", wer=0.5),
        point(wer=0.05, seconds=2.5, decoder="lm"),
        point(decoder="lm", seconds=3),
    ]
    assert [r.on_front for r in mark_front(points)] == [True, True, True, True, False]


@pytest.mark.parametrize(
    "more", [[], [point(split="dev", wer=0.5), point(wer=0.05, decoder="lm")]], ids=["one", "several"]
)
def test_files_hold_the_points(tmp_path, more):
    points = mark_front([*POINTS, *more])
    write_tradeoff(points, tmp_path)
    assert read_tradeoff(tmp_path) == points
    objects = json.loads((tmp_path / "tradeoff.json").read_text())
    keys = "setting wer cer sub del ins words utterances seconds rtf relative_time macs_per_s device dtype decoder"
    assert {*keys.split(), "on_front"} <= set(objects[0])
    with (tmp_path / "tradeoff.csv").open() as file:
        assert [r["setting"] for r in csv.DictReader(file)] == [r.setting for r in points]
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tradeoff.csv", "tradeoff.json", "tradeoff.png"]


def test_what_is_no_table_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match=r"run configs/evaluate\.py first"):
        read_tradeoff(tmp_path)
    (tmp_path / "tradeoff.json").write_text('[{"wer": 1}]')
    with pytest.raises(UserError, match="is not a trade-off table"):
        read_tradeoff(tmp_path)


def test_the_text_has_a_line_for_each_setting():
    text = format_table(mark_front(POINTS))
    assert all(r.setting in text for r in POINTS)
    assert "not trained on" in text and "10.00" in text and "8.0-13.0" in text and "test, greedy" not in text


def test_the_text_names_splits_and_decoders_where_there_are_several():
    lines = format_table([point(), point(decoder="lm"), point(split="dev")]).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["test,", "s1q1k1", "test,", "s1q1k1", "dev,", "s1q1k1"]


def test_run_times_have_tables_of_their_own_where_there_are_several():
    points = [point(), point(engine=("onnxruntime", "int8")), point(decoder="lm", engine=("openvino", "bfloat16"))]
    assert ways(points) == ["greedy, jax float32", "greedy, onnxruntime int8", "lm, openvino bfloat16"]
    text = format_table(points)
    assert "test, greedy, onnxruntime int8:\n" in text and "test, lm, openvino bfloat16:\n" in text
    assert ways(points[:1]) == ["greedy"]


def test_a_table_from_before_there_were_run_times_is_of_jax(tmp_path):
    write_tradeoff(POINTS, tmp_path)
    rows = json.loads((tmp_path / "tradeoff.json").read_text())
    for row in rows:
        del row["runtime"]
    (tmp_path / "tradeoff.json").write_text(json.dumps(rows))
    assert read_tradeoff(tmp_path) == POINTS


def test_labels_are_shown_by_what_is_right(tmp_path):
    """Accuracy and F1 where texts have WER; the files hold both kinds as they were."""
    of_labels = dict(accuracy=0.9, accuracy_low=0.87, accuracy_high=0.92, words=20)
    of_labels |= dict(macro_f1=0.8, macro_f1_low=0.7, macro_f1_high=0.85)
    labelled = [dataclasses.replace(one, **of_labels) for one in POINTS]
    shown, first = format_table(labelled), format_table(labelled).splitlines()
    assert "WER" not in shown and first[0].split("  ")[1].strip() == "accuracy %"
    assert {"90.00", "87.0-92.0", "80.00", "70.0-85.0", "3 of 20"} <= set(re.split(r"\s{2,}", first[1]))
    for points in (labelled, POINTS):
        write_tradeoff(points, tmp_path)
        assert read_tradeoff(tmp_path) == list(points)
        assert ("accuracy" in (tmp_path / "tradeoff.csv").read_text()) == (points is labelled)
