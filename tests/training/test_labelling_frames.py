"""Labels of frames from a manifest to a table: trained, measured, read from Python, written out; what is refused."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

import sew_jax
from configs import evaluate as evaluate_config
from configs import export as export_config
from sew_jax.checkpoints.hf_folder import open_released, write_folder
from sew_jax.data.labels import FrameLabels, Labels, check_labels
from sew_jax.data.sources import open_source
from sew_jax.errors import UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.export.export import export
from sew_jax.metrics.metrics_file import read_rows
from sew_jax.models.config import FrameHeadConfig
from sew_jax.models.frame_classifier import FrameClassifierModel
from sew_jax.training.losses import label_cross_entropy
from sew_jax.training.setup import open_task
from sew_jax.training.train import train
from tests.runs import begin, finetuning, pretraining
from tests.training.test_classifying import classifying

COUNTS = {"train": 32, "dev": 6, "test": 9}


def write_manifest(folder):
    """Noise with a hum in it, of a fifth of a second or more: other frequencies, since levels are normed."""
    random, lines = np.random.default_rng(0), []
    for split, count in COUNTS.items():
        for i in range(count):
            wave = random.normal(size=14_000 + 700 * (i % 3)) * 0.1
            start, length = random.uniform(0, 0.4), random.uniform(0.2, 0.4)
            end = start + length
            hum = slice(round(start * 16_000), round(end * 16_000))
            wave[hum] = np.convolve(wave[hum], np.ones(16) / 6, "same")
            soundfile.write(folder / f"{split}{i}.wav", wave, 16_000)
            segments = [{"start": start, "end": end, "label": "hum"}]
            lines.append({"audio": f"{split}{i}.wav", "segments": segments, "split": split})
    path = folder / "segments.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    manifest = write_manifest(root)
    origin = pretraining(manifest)
    origin.model.frontend, origin.model.mel_scale = "logmel", "utterance"
    begin(origin, root / "pretrain")
    changes = {"task": "frames", "num_steps": 60, "eval.every": 60, "compression.names": "s1q1k1,s2q1k1"}
    train(classifying(manifest, root / "pretrain", **changes, **{"sandwich.enabled": True}), root / "run")
    return root


@pytest.fixture(scope="module")
def evaluated(runs):
    config = evaluate_config.get_config()
    config.data, config.init_from = str(runs / "segments.jsonl"), str(runs / "run")
    config.repeats, config.input.buckets, config.split = 1, 1, "test,dev"
    return evaluate(config, runs / "table")


def rows_of(runs, setting, split):
    lines = (runs / "table" / "transcripts" / f"{setting}.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def test_it_learns_what_it_is_told(evaluated):
    for point in evaluated:
        assert point.accuracy >= 0.9 and point.macro_f1 >= 0.85, (point.setting, point.accuracy)


def test_rows_are_counts_of_frames(runs, evaluated):
    for point in evaluated:
        pairs = [
            pair
            for row in rows_of(runs, point.setting, point.split)
            for pair in zip(row["reference"].split(), row["hypothesis"].split(), strict=True)
        ]
        assert point.words == len(pairs) > 40 * point.utterances - 80 and point.utterances == COUNTS[point.split]
        assert point.accuracy == pytest.approx(np.mean([a == b for a, b in pairs]))
        assert point.substitutions == sum(a != b for a, b in pairs) and point.insertions == point.deletions == 0
        assert point.accuracy_low <= point.accuracy <= point.accuracy_high
    page = (runs / "table" / "tradeoff.html").read_text()
    assert "none none none" in page


def test_held_out_rows_are_the_tables(runs, evaluated):
    rows = {row["setting"]: row for row in read_rows(runs / "run" / "held_out.jsonl")}
    for point in evaluated:
        if point.split == "dev":
            row = rows[point.setting]
            assert row["accuracy"] == pytest.approx(point.accuracy) == pytest.approx(1 - row["wer"])
            assert row["macro_f1"] == pytest.approx(point.macro_f1, abs=1e-6)


def test_from_python(runs, evaluated):
    """Runs of what the evaluation wrote, from the begin to the end; other questions are refused with what to ask."""
    model = sew_jax.load(runs / "run")
    for row in rows_of(runs, "s2q1k1", "test"):
        found = model.label_frames(str(runs / f"{row['id']}.wav"), setting="s2q1k1")
        frames = [part.label for part in found for _ in range(round((part.end - part.start) * 50))]
        assert frames == row["hypothesis"].split()
        assert [part.start for part in found] == [0, *(part.end for part in found[:-1])]
        assert all(a.label != b.label for a, b in itertools.pairwise(found))
        assert all(0.5 <= part.confidence <= 1 for part in found)
    with pytest.raises(UserError, match=r"labels frames \(ask label_frames\); fine-tune .* --config\.task=classify"):
        model.classify(str(runs / "test0.wav"))
    with pytest.raises(UserError, match=r"gives labels \(hum, none\), not text: sew_jax.load\(.*\).label_frames"):
        model.transcribe(str(runs / "test0.wav"))
    with pytest.raises(UserError, match=r"gives no labels; fine-tune it with --config\.task=frames"):
        sew_jax.load(runs / "pretrain").label_frames(str(runs / "test0.wav"))


def test_a_folder_of_ours_gives_the_same(runs):
    config = export_config.get_config()
    config.init_from, config.format, config.weights = str(runs / "run"), "sew_jax", "float32"
    export(config, runs / "folder")
    ours, theirs = (sew_jax.load(runs / name).label_frames(str(runs / "test1.wav")) for name in ("run", "folder"))
    assert ours == theirs
    assert "label_frames" in (runs / "folder" / "README.md").read_text()
    config.format = "hf"
    with pytest.raises(UserError, match="frontend is logmel"):
        export(config, runs / "hf")


def test_a_head_of_another_kind_stays_behind(runs, tmp_path):
    """Labels of utterances and of frames may have the same names and are not the same."""
    rows = [json.loads(line) for line in (runs / "segments.jsonl").read_text().splitlines()]
    path = runs / "labels.jsonl"
    rows = [row | {"label": "hum" if row["segments"][0]["start"] > 0.2 else "none"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = open_task(classifying(path, runs / "run"))
    assert task.vocabulary.names == ("hum", "none")
    fresh = jax.jit(task.init)(jax.random.key(1))["params"]
    started = task.warm_start(fresh, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    jax.tree.map(np.testing.assert_array_equal, started["classifier"], fresh["classifier"])


def test_one_label_alone_teaches_nothing(runs, tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text(json.dumps({"audio": str(runs / "train1.wav"), "segments": []}) + "\n")
    config = finetuning(path, runs / "pretrain")
    config.task = "frames"
    with pytest.raises(UserError, match=r"all frames of .* have the label 'none', and there is nothing"):
        open_task(config)


def test_a_model_that_has_no_class_for_the_rest(runs):
    """As one of somebody else may."""
    options = dict(min_samples=1, need_text=True, max_bad=0, target="segments")
    source, _ = open_source(str(runs / "segments.jsonl"), "dev", **options)
    check_labels(FrameLabels(("hum", "none")), source)
    with pytest.raises(UserError, match=r"have labels that training did not \('none'; it had hum\)"):
        check_labels(FrameLabels(("hum",)), source)


def test_the_loss_is_numpys():
    """The mean over frames that both lengths cover, whatever lies beyond."""
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(4, 9, 3)).astype(np.float32), random.integers(0, 3, (4, 7)).astype(np.int32)
    frames, told = np.array([9, 5, 4, 0]), np.array([7, 3, 6, 0])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    pairs = [(b, t) for b in range(4) for t in range(min(frames[b], told[b]))]
    loss, right = label_cross_entropy(*map(jnp.asarray, (logits, frames, labels, told)))
    assert loss.weight == right.weight == len(pairs) == 14
    np.testing.assert_allclose(loss.sum, -sum(log_probs[b, t, labels[b, t]] for b, t in pairs), rtol=1e-5)
    assert right.sum == sum(logits[b, t].argmax() == labels[b, t] for b, t in pairs)


def test_released_heads_of_frames_are_read_where_a_frame_has_one_label(runs, tmp_path):
    """There and back through a folder of Hugging Face's; speakers that talk at once are labels of another kind."""
    released = open_released("tests/released/wav2vec2_ctc")
    head = FrameHeadConfig(frame_labels=3, layer_sum=True)
    architecture = released.architecture._replace(head=head)
    params = jax.jit(FrameClassifierModel(architecture.backbone, head).initialize)(jax.random.key(0))["params"]
    write_folder(tmp_path, released.family, architecture, params, None, Labels(("a", "b", "c")))
    again = open_released(str(tmp_path))
    assert again.labels.names == ("a", "b", "c") and again.architecture.head == head and not again.left_behind
    jax.tree.map(np.testing.assert_array_equal, again.parameters(), params)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Wav2Vec2ForAudioFrameClassification"]
    del config["problem_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_released(str(tmp_path)).architecture.head is None
