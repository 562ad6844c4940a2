"""What follows from a run's evaluations: the best checkpoint after a kill, other splits, another start."""

import errno
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath

from sew_jax.checkpoints.checkpointer import BEST
from sew_jax.checkpoints.pretrained import open_pretrained
from sew_jax.data.audio import read
from sew_jax.decoding.greedy import greedy
from sew_jax.errors import UserError
from sew_jax.metrics.wer import count_errors
from sew_jax.models.masking import mask_slots, masked_frames, negative_indices
from sew_jax.models.noise import row_keys
from sew_jax.runtime.sharding import make_mesh
from sew_jax.training import losses
from sew_jax.training.held_out import open_held_out
from sew_jax.training.setup import open_task
from sew_jax.training.train import train
from sew_jax.training.validation import FILE, Validation
from tests import runs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A corpus with a dev split, and a pre-trained model at its first update."""
    root = tmp_path_factory.mktemp("validation")
    corpus = runs.make_corpus(root / "corpus")
    shutil.copytree(corpus / "test", corpus / "dev")
    runs.begin(runs.pretraining(corpus), root / "pretrain")
    return root


def finetuning(root, every=3):
    config = runs.finetuning(root / "corpus", root / "pretrain")
    config.eval.every = every
    return config


def saying(wers, monkeypatch):
    """Evaluations that find these word error rates: update -> rate."""

    def said(self, step, state, progress, run=Validation.run):
        row = {"wer": wers[step], "errors": 1, "words": 10, "loss": 9.0}
        self._held_out = self._held_out._replace(measure=lambda *_: [row] * len(self._held_out.settings))
        run(self, step, state, progress)

    monkeypatch.setattr(Validation, "run", said)


def best(workdir):
    """What another run starts from."""
    return open_pretrained(str(workdir)).load(jax.sharding.SingleDeviceSharding(jax.devices()[0]))[0]


def test_a_kill_leaves_the_best_of_what_is_left(root, tmp_path, monkeypatch, capsys):
    """Bests of updates 3, 6 and 9, checkpoints of 5 and 9: where the second is lost, that of update 3 is the best."""
    saying({3: 0.8, 6: 0.6, 9: 0.4, 12: 0.5}, monkeypatch)
    config = finetuning(root)
    config.num_steps = 9
    train(config, tmp_path)
    assert best(tmp_path) == "update 9, the best by WER on dev (40.0%)"
    assert sorted(path.name for path in (tmp_path / BEST / "checkpoints").iterdir()) == ["3", "9"]
    shutil.rmtree(tmp_path / "checkpoints/9")
    config.num_steps = 5
    train(config, tmp_path)
    assert "the best by WER on dev is that of update 3, 80.0%" in capsys.readouterr().out
    assert best(tmp_path) == "update 3, the best by WER on dev (80.0%)"
    config.num_steps = 9
    train(config, tmp_path)
    assert best(tmp_path) == "update 9, the best by WER on dev (40.0%)"


def test_a_best_checkpoint_half_written_is_none(root, tmp_path, monkeypatch):
    saying({12: 0.8}, monkeypatch)
    train(finetuning(root, every=12), tmp_path)
    (tmp_path / BEST / "checkpoints/12").rename(tmp_path / BEST / "checkpoints/12.orbax-checkpoint-tmp")
    assert best(tmp_path) == "update 12"


def test_rows_of_another_split_decide_nothing(root, tmp_path, monkeypatch, capsys):
    saying({3: 0.1, 6: 0.5, 9: 0.4, 12: 0.5}, monkeypatch)
    config = finetuning(root)
    config.num_steps = 3
    train(config, tmp_path)
    config.num_steps, config.eval.split, config.optim.lr, config.resume = 12, "test", 1e-12, "optim.lr"
    train(config, tmp_path)
    assert "the best by WER on test is that of update 9, 40.0%" in capsys.readouterr().out
    assert best(tmp_path) == "update 9, the best by WER on test (40.0%)"


def test_of_equals_the_first_is_the_best_and_it_is_saved_whatever_storage_says(root, tmp_path, monkeypatch, capsys):
    saying({3: 2 / 3, 6: 2 / 3, 9: 0.7, 12: 2 / 3}, monkeypatch)
    failures, finalize = [OSError(errno.EIO, "Input/output error")], AtomicRenameTemporaryPath.finalize

    def flaky(self, *arguments, **options):
        if BEST in str(self.get_final()) and failures:
            raise failures.pop()
        return finalize(self, *arguments, **options)

    monkeypatch.setattr(AtomicRenameTemporaryPath, "finalize", flaky)
    assert train(finetuning(root), tmp_path).step == 12 and not failures
    out = capsys.readouterr().out
    assert out.count("the best so far") == 1 and "the best checkpoint could not be written: [Errno 5]" in out
    assert best(tmp_path) == "update 3, the best by WER on dev (66.7%)"
    assert [path.name for path in (tmp_path / BEST / "checkpoints").iterdir()] == ["3"]


def test_what_is_trained_on_is_not_held_out(root, tmp_path, capsys):
    config = finetuning(root)
    config.split, config.num_steps = "train,dev", 1
    train(config, tmp_path / "auto")
    assert "config.split=train,dev takes in dev" in capsys.readouterr().out
    config.eval.split = "dev"
    with pytest.raises(UserError, match=r"eval\.split: .* takes in dev, which is trained on"):
        train(config, tmp_path / "dev")
    config.split, config.eval.split = "", "test"
    with pytest.raises(UserError, match="takes in test"):
        train(config, tmp_path / "all")


def test_a_baseline_must_be_a_fine_tuning_run(root, tmp_path):
    config = finetuning(root)
    config.eval.baseline = str(tmp_path)
    with pytest.raises(UserError, match=r"held_out\.jsonl cannot be read"):
        train(config, tmp_path / "run")
    (tmp_path / FILE).write_text('{"step": 3, "split": "dev", "setting": "s1q1k1", "accuracy": 0.2}\n')
    with pytest.raises(UserError, match=r"eval\.baseline: .* is no fine-tuning run"):
        train(config, tmp_path / "run")


def measured(config, mesh):
    """(task, variables, what is held out, its rows) of a model at its first update."""
    task = open_task(config)
    held_out = open_held_out(config, task, mesh)
    variables = jax.jit(task.init)(jax.random.key(0))
    programs = runs.held_out_programs(held_out)
    return task, variables, held_out, held_out.measure(programs, variables, lambda: None)


def test_word_errors_and_ctc_loss_are_those_of_each_utterance_alone(root):
    """However they are padded and put together."""
    config = finetuning(root)
    task, variables, held_out, rows = measured(config, make_mesh(4, 2))
    folder = root / "corpus/dev/2/1"
    texts = dict(line.split(" ", 1) for line in (folder / "2-1.trans.txt").read_text().splitlines())
    apply = jax.jit(functools.partial(task.model.apply, deterministic=True), static_argnums=3)
    for setting, row in zip(held_out.settings, rows, strict=True):
        errors, bits = 0, []
        for name, text in texts.items():
            wave = read(str(folder / f"{name}.flac"))
            logits, frames = apply(variables, wave[None], np.array([len(wave)]), setting)
            labels = np.array([task.vocabulary.encode(text)])
            loss, _ = losses.ctc(logits, frames, labels, np.array([labels.shape[1]]), np.ones(1))
            bits.append(float(loss.sum) / np.log(2))
            errors += count_errors(text, greedy(np.asarray(logits[0].argmax(-1)), task.vocabulary)).errors
        assert (row["errors"], row["words"]) == (errors, len(texts)) and row["wer"] == errors / len(texts)
        assert row["loss"] == pytest.approx(np.mean(bits), rel=1e-4)


def test_transcripts_without_symbols_count_as_errors_and_give_no_loss(root, tmp_path):
    corpus = shutil.copytree(root / "corpus", tmp_path / "corpus")
    texts = corpus / "dev/2/1/2-1.trans.txt"
    known = measured(finetuning(root), make_mesh(4, 2))[3][0]
    texts.write_text(texts.read_text().replace("ONE", "ÉINS"), encoding="utf-8")
    config = finetuning(root)
    config.data = str(corpus)
    row = measured(config, make_mesh(4, 2))[3][0]
    assert row["words"] == known["words"] and np.isfinite(row["loss"]) and row["loss"] != known["loss"]


def test_contrastive_bits_are_those_of_the_formula(root):
    """InfoNCE written out, utterance by utterance, on the masks and negatives that the seed gives."""
    config = runs.pretraining(root / "corpus")
    task, variables, held_out, rows = measured(config, make_mesh(1, 1, devices=jax.devices()[:1]))
    bucket = held_out.buckets[0]
    _, batch = held_out.arguments(variables, (held_out.settings[0], bucket))
    frames = np.array([(n - 400) // 160 + 1 for n in np.asarray(batch["length"])]) // 2
    total = ((bucket - 400) // 160 + 1) // 2
    mask_key, negative_key = jax.random.split(jax.random.key(config.seed))
    spans = dict(config.mask)
    slots = mask_slots(total, prob=spans["prob"], span=spans["span"])
    mask_key_B, negative_key_B = (row_keys(key, jnp.arange(len(frames))) for key in (mask_key, negative_key))
    masked = masked_frames(mask_key_B, frames, total, slots=slots, **spans)
    negatives = np.asarray(negative_indices(negative_key_B, masked.valid_BxM, config.head.negatives))
    apply = jax.jit(functools.partial(task.model.apply, deterministic=True), static_argnums=4)
    for setting, row in zip(held_out.settings, rows, strict=True):
        out = apply(variables, batch["wave"], batch["length"], masked, setting, 1.0)
        bits, right, count = 0.0, 0, 0
        for b, m in zip(*np.nonzero(np.asarray(masked.valid_BxM)), strict=True):
            prediction, targets = np.asarray(out.prediction_BxMxF[b, m]), np.asarray(out.target_BxMxF[b])
            codes = np.asarray(out.quantized.codes_BxMxG[b])
            cosines = targets @ prediction / np.linalg.norm(targets, axis=1) / np.linalg.norm(prediction) / 0.1
            others = [cosines[n] for n in negatives[b, m] if (codes[n] != codes[m]).any()]
            bits -= np.log2(np.exp(cosines[m]) / (np.exp(cosines[m]) + np.exp(others).sum()))
            right, count = right + all(cosines[m] > others), count + 1
        assert row["loss_contrastive"] == pytest.approx(bits / count, rel=1e-4)
        assert row["accuracy"] == pytest.approx(right / count, abs=1e-6)
