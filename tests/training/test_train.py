"""The loop: resume, stop, refuse, and compile what is needed and no more."""

import contextlib
import json
import os
import resource
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
import soundfile

from sew_jax.checkpoints.checkpointer import Checkpoints, newest_record
from sew_jax.checkpoints.quiet import quiet_orbax
from sew_jax.errors import UserError
from sew_jax.metrics.metrics_file import MetricsFile, read_metrics
from sew_jax.training.train import train
from tests.runs import finetuning, make_corpus, pretraining

TIMES = ("time", "steps_per_s", "audio_h_per_h", "input_wait_frac", "joules")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "pretrain"
    return workdir, train(pretraining(corpus), workdir)


def values(workdir):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(workdir)]


def test_a_run_leaves_what_it_promises(pretrained):
    workdir, summary = pretrained
    rows = read_metrics(workdir)
    assert [row["step"] for row in rows] == list(range(1, 13)) and summary.step == 12 and not summary.stopped
    keys = (
        "setting loss loss_contrastive loss_diversity loss_penalty accuracy code_perplexity prob_perplexity "
        "temperature lr grad_norm steps_per_s audio_h_per_h input_wait_frac batch_ids tflop joules energy_by"
    )
    assert all(set(keys.split()) <= set(row) for row in rows)
    assert {row["setting"] for row in rows} == {"s1q1k1", "s2q1k1"}
    assert all(row["tflop"] > 0 and row["joules"] > 0 and row["energy_by"] in ("rapl", "rating") for row in rows)
    assert len({(row["setting"], row["tflop"]) for row in rows}) == 2  # a setting's updates cost the same
    record = json.loads((workdir / "config.json").read_text())
    assert record["config"]["seed"] == 0 and record["architecture"]["backbone"]["width"] == 32
    checkpoints = Checkpoints(workdir)
    assert checkpoints.latest() == 12
    checkpoints.close()


def test_programs_are_settings_times_buckets_and_a_second_epoch_compiles_none(corpus, pretrained, tmp_path):
    del pretrained  # by it the slices have been compiled that Orbax takes of each array, once a process
    config = pretraining(corpus)
    config.input.buckets = 2
    compiled = []

    def note(name, *_, **__):  # what threads compile ahead is no wait
        if "backend_compile" in name and threading.current_thread() is threading.main_thread():
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(note)
    programs, after = [], []

    def count(*_args):
        (after if programs else programs).append(len(compiled))

    # a line a step: what is compiled between the first and the last is compiled inside the loop
    config.log_every = 1
    original, MetricsFile.write = MetricsFile.write, lambda self, row: (count(), original(self, row))[1]
    try:
        summary = train(config, tmp_path / "run")
    finally:
        MetricsFile.write = original
        jax.monitoring.clear_event_listeners()
    assert summary.programs == 2 * 2
    assert read_metrics(tmp_path / "run")[-1]["epoch"] >= 1
    assert after[-1] == programs[0]


def test_a_finished_run_does_nothing_and_goes_on_when_asked(corpus, pretrained, capfd):
    workdir, _ = pretrained
    summary = train(pretraining(corpus), workdir)
    assert summary.step == 12 and summary.programs == 0
    assert "nothing to do" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("seed", 1, r"config\.seed=0, this one has 1"), ("optim.lr", 0.5, r"config\.optim\.lr=.* this one has 0\.5")],
)
def test_another_run_in_the_same_workdir_is_refused(corpus, pretrained, key, value, message):
    config = pretraining(corpus)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=message):
        train(config, pretrained[0])


def test_changed_data_is_refused(corpus, pretrained):
    path = corpus / "train/1/1/1-1-0099.flac"
    soundfile.write(path, np.zeros(16_000), 16_000)
    try:
        with pytest.raises(UserError, match=r"have changed \(12 utterances then, 13 now"):
            train(pretraining(corpus), pretrained[0])
    finally:
        path.unlink()


def test_finetuning_starts_from_the_pretrained_parameters(corpus, pretrained, tmp_path, capfd):
    config = finetuning(corpus, pretrained[0])
    config.compression.squeeze = (1, 2, 3)  # an up-sampler that pre-training had not
    config.optim.freeze = 1.0  # the head alone
    summary = train(config, tmp_path / "run")
    out = capfd.readouterr().out
    assert "new: upsample_3/difference, symbols" in out and "left behind: project_prediction" in out
    assert np.isfinite(summary.metrics["loss"]) and (tmp_path / "run" / "vocab.json").is_file()
    before, after = (load(w) for w in (pretrained[0], tmp_path / "run"))
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()),
        before["backbone"]["encoder"]["layer_0"],
        after["backbone"]["encoder"]["layer_0"],
    )
    assert all(jax.tree.leaves(same))


def load(workdir):
    from sew_jax.checkpoints.checkpointer import load_params

    return load_params(workdir, jax.sharding.SingleDeviceSharding(jax.devices()[0]))[1]


def test_from_scratch_shares_the_architecture_alone(corpus, pretrained, tmp_path):
    config = finetuning(corpus, pretrained[0])
    config.from_scratch = True
    config.num_steps, config.compression.squeeze = 1, (1,)
    train(config, tmp_path / "run")
    before, after = (
        load(w)["backbone"]["encoder"]["layer_0"]["ffn_in"]["kernel"] for w in (pretrained[0], tmp_path / "run")
    )
    assert before.shape == after.shape and not np.allclose(before, after, atol=1e-2)


def test_a_checkpoint_of_another_shape_is_named(corpus, pretrained, tmp_path):
    config = pretraining(corpus)
    config.init_from = str(pretrained[0])
    config.model.ffn_width = 64
    with pytest.raises(UserError, match=r"another shape: backbone/encoder/layer_0/ffn_in/bias \(32,\), not \(64,\)"):
        train(config, tmp_path / "run")


def test_an_init_from_without_a_run(corpus, tmp_path):
    with pytest.raises(UserError, match="init_from is empty"):
        train(finetuning(corpus, ""), tmp_path / "run")
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        train(finetuning(corpus, tmp_path / "nowhere"), tmp_path / "run")


def test_utterances_shorter_than_a_span_are_named(corpus, tmp_path):
    config = pretraining(corpus)
    config.mask.span = 60
    with pytest.raises(UserError, match=r"no usable audio.*1-1-0000 is 0.75 s long, shorter than"):
        train(config, tmp_path / "run")


def test_a_divergence_stops_before_it_is_saved(corpus, tmp_path, capfd):
    config = pretraining(corpus)
    config.optim.lr, config.optim.clip_norm, config.optim.warmup = 1e30, 0.0, 0.0
    config.optim.max_skipped = 6
    with pytest.raises(UserError, match=r"training diverged: 7 updates in a row.*lower optim.lr"):
        train(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert [row["skipped"] for row in rows[-7:]] == [1.0] * 7 and rows[-8]["skipped"] == 0
    assert rows[-1]["loss"] is None  # not NaN, which is no JSON
    checkpoints = Checkpoints(tmp_path / "run")
    assert (checkpoints.latest() or 0) <= rows[-8]["step"]
    checkpoints.close()
    with stopping_after(rows[-3]["step"]):  # a signal amid them saves none of it either
        assert train(config, tmp_path / "stopped").stopped
    saved = newest_record(tmp_path / "stopped")
    saved = saved["step"] if saved else 0
    assert saved <= rows[-8]["step"]
    assert f"had no finite loss and gradient: nothing was saved since update {saved}," in capfd.readouterr().out


def test_audio_that_breaks_while_training_is_counted_up_to_a_bound(corpus, tmp_path, capfd):
    broken = [corpus / "train/1/1" / f"1-1-{i:04d}.flac" for i in range(2)]
    sound = [path.read_bytes() for path in broken]
    config = pretraining(corpus)
    try:
        for path, data in zip(broken, sound, strict=True):
            path.write_bytes(data[: len(data) // 2])  # the header still promises all of it
        config.input.max_bad = 2
        assert train(config, tmp_path / "run").step == 12
        out = capfd.readouterr().out
        assert out.count("it is skipped") == 2 and "1-1-0001" in out
        listed = [json.loads(line)["id"] for line in (tmp_path / "run/left_out.jsonl").read_text().splitlines()]
        assert sorted(listed) == ["1-1-0000", "1-1-0001"]
        config.input.max_bad = 1
        with pytest.raises(UserError, match=r"2 utterances of .* are damaged"):
            train(config, tmp_path / "other")
    finally:
        for path, data in zip(broken, sound, strict=True):
            path.write_bytes(data)


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    metrics = MetricsFile(path, 2)
    metrics.write({"step": 3, "again": True})
    metrics.close()
    assert path.read_text().splitlines() == ['{"step": 1}', '{"step": 2}', '{"step": 3, "again": true}']


def test_a_change_is_allowed_by_name(corpus, pretrained, tmp_path, capfd):
    shutil.copytree(pretrained[0], tmp_path / "copy")  # a copied workdir is as good as the first
    config = pretraining(corpus)
    config.num_steps, config.optim.lr, config.resume = 13, 1e-4, "optim.lr"
    assert train(config, tmp_path / "copy").step == 13
    out = capfd.readouterr().out
    assert "resumes at update 12" in out and "optim.lr was 0.002, is 0.0001" in out
    config.resume = "optim.lrr"
    with pytest.raises(UserError, match=r"resume: 'optim\.lrr' is no key"):
        train(config, tmp_path / "copy")
    config.resume, config.model.ffn_width = "model", 48
    with pytest.raises(UserError, match=r"holds a model of \d+ parameters, this one has"):
        train(config, tmp_path / "copy")


def test_a_run_from_before_a_key_existed_goes_on(corpus, pretrained, tmp_path, capfd):
    workdir = tmp_path / "older"
    shutil.copytree(pretrained[0], workdir)
    for path in (workdir / "checkpoints").glob("*/meta/metadata"):
        record = json.loads(path.read_text())
        del record["config"]["input"]["speed"], record["config"]["model"]["pool_ffn"]
        del record["architecture"]["backbone"]["pool_ffn"]
        path.write_text(json.dumps(record))
    config = pretraining(corpus)
    config.num_steps, config.input.speed = 13, 0.1
    with pytest.raises(UserError, match=r"config\.input\.speed=0\.0, this one has 0\.1"):
        train(config, workdir)
    config.input.speed = 0.0
    assert train(config, workdir).step == 13
    assert "resumes at update 12" in capfd.readouterr().out
    assert json.loads((workdir / "config.json").read_text())["config"]["input"]["speed"] == 0.0


def test_a_damaged_checkpoint_gives_way_to_the_one_before(corpus, pretrained, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(pretrained[0], workdir)
    (workdir / "checkpoints/12/params/manifest.ocdbt").unlink()
    assert load(workdir)  # evaluation takes the one before, and leaves things as they are
    out = capfd.readouterr().out
    assert "update 12 is damaged" in out and "update 10 is used" in out
    assert train(pretraining(corpus), workdir).step == 12
    out = capfd.readouterr().out
    assert "resumes at update 10: the newest that is whole" in out and "that of update 12 is damaged" in out
    assert values(workdir) == values(pretrained[0])
    assert (workdir / "damaged/12").is_dir() and (workdir / "checkpoints/12").is_dir()


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(corpus, pretrained, tmp_path, capfd):
    """A bound on the size of files stands for it: what is written past it fails, in Python and in TensorStore."""
    quiet_orbax()  # as `main` does
    config, usual = pretraining(corpus), resource.getrlimit(resource.RLIMIT_FSIZE)
    original = MetricsFile.write

    def write(self, row):
        original(self, row)
        if row["step"] == 7:
            deadline = time.monotonic() + 60
            while not (tmp_path / "run/checkpoints/5").is_dir() and time.monotonic() < deadline:  # in the background
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, usual[1]))

    MetricsFile.write = write
    try:
        with pytest.raises(
            UserError, match=r"run cannot be written \(file too large\); .* goes on from its newest checkpoint"
        ):
            train(config, tmp_path / "run")
    finally:
        MetricsFile.write = original
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert any(
        "tmp" in path.name for path in (tmp_path / "run/checkpoints").iterdir()
    )  # it was in the middle of a save
    assert train(config, tmp_path / "run").step == 12
    assert "resumes at update 5:" in capfd.readouterr().out
    assert values(tmp_path / "run") == values(pretrained[0])


def test_a_workdir_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run cannot be written \(not a directory: .*file/run\)"):
        train(pretraining(corpus), tmp_path / "file/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission(corpus, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match=r"cannot be written \(permission denied: .*\)"):
        train(pretraining(corpus), tmp_path / "locked/run")


def test_what_a_kill_left_half_written_is_no_checkpoint(corpus, pretrained, tmp_path, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(pretrained[0], workdir)
    (workdir / "checkpoints/12").rename(workdir / "checkpoints/12.orbax-checkpoint-tmp")
    assert train(pretraining(corpus), workdir).step == 12
    assert "resumes at update 10: the newest checkpoint there" in capfd.readouterr().out
    assert values(workdir) == values(pretrained[0])


@contextlib.contextmanager
def stopping_after(update):
    """SIGTERM as soon as an update's row is written."""
    original = MetricsFile.write

    def write(self, row):
        original(self, row)
        if row["step"] == update:
            os.kill(os.getpid(), signal.SIGTERM)

    MetricsFile.write = write
    try:
        yield
    finally:
        MetricsFile.write = original


def train_on(config, mesh, workdir, monkeypatch, stop_after=None):
    config.mesh.data, config.mesh.fsdp = mesh
    devices = jax.devices()
    with monkeypatch.context() as patch, stopping_after(stop_after):
        patch.setattr(jax, "devices", lambda *_: devices[: mesh[0] * mesh[1]])
        return train(config, workdir)


def test_fewer_and_fewer_devices_go_on_with_the_same_batches_and_losses(
    corpus, pretrained, tmp_path, monkeypatch, capfd
):
    """SIGTERM in the middle, each time: the update is finished and saved. (To the bit: the fault loop.)"""
    config, workdir = pretraining(corpus), tmp_path / "run"
    stopped = train_on(config, (4, 2), workdir, monkeypatch, stop_after=3)
    assert stopped.stopped and 3 <= stopped.step < 12
    assert "everything is saved" in capfd.readouterr().out
    assert train_on(config, (2, 2), workdir, monkeypatch, stop_after=7).stopped
    assert f"resumes at update {stopped.step}:" in capfd.readouterr().out
    assert train_on(config, (1, 1), workdir, monkeypatch).step == 12
    assert_same_to_rounding(values(workdir), values(pretrained[0]))


def test_more_devices_than_rows_go_on_with_the_same_batches_and_losses(corpus, tmp_path, monkeypatch, capfd):
    config = pretraining(corpus)
    config.num_steps, config.input.batch_seconds, config.compression.squeeze = 8, 3.6, (2,)
    train_on(config, (1, 1), tmp_path / "whole", monkeypatch)
    assert train_on(config, (1, 1), tmp_path / "run", monkeypatch, stop_after=3).stopped
    assert train_on(config, (8, 1), tmp_path / "run", monkeypatch).step == 8
    assert "s x 3 (and 5 empty rows, for so many devices)" in capfd.readouterr().out
    assert_same_to_rounding(values(tmp_path / "run"), values(tmp_path / "whole"))


def assert_same_to_rounding(rows, others):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert {k: row[k] for k in ("step", "setting", "batch_ids")} == {
            k: other[k] for k in ("step", "setting", "batch_ids")
        }
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5), row["step"]
