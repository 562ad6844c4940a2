"""What transcripts go through from training to error rates: forms of Unicode, normalisers, silence."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from configs import evaluate as evaluate_config
from configs import export as export_config
from configs import finetune as finetune_config
from configs import lm as lm_config
from sew_jax.checkpoints.hf_folder import open_released
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.decoding.build_lm import build_lm
from sew_jax.errors import UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.export.export import export
from sew_jax.metrics.metrics_file import read_metrics, read_rows
from sew_jax.training.setup import open_task
from sew_jax.training.train import train
from sew_jax.training.validation import FILE
from tests.ngrams import read_arpa

RELEASED = Path(__file__).parents[1] / "released" / "wav2vec2_ctc"
# the same words in two forms of Unicode, silence, punctuation alone, and one without a transcript
TRAIN = ["Tôi là!", "To\u0302i la\u0300", "", "là\u200b tôi là tôi là tôi là tôi là tôi là tôi", "..."]
DEV = ["tôi là", "", "xyz", "La\u0300."]
TEST = ["TÔI, LÀ", "", "?!", "to\u0302i la\u0300", None]


def manifest(folder, split, texts):
    random, lines = np.random.default_rng(0), []
    for i, text in enumerate(texts):
        soundfile.write(folder / f"{split}{i}.wav", random.normal(size=9_600) * 0.1, 16_000)
        lines.append({"audio": f"{split}{i}.wav", "id": f"{split}{i}", "text": text, "split": split})
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    lines = [manifest(root, split, texts) for split, texts in (("train", TRAIN), ("dev", DEV), ("test", TEST))]
    (root / "set.jsonl").write_text("".join(lines))
    shutil.copytree(RELEASED, root / "released")
    (root / "released" / "vocab.json").write_text("{")  # whose vocabulary nobody can read, or needs
    return root


def finetuning(root):
    config = finetune_config.get_config()
    config.data, config.init_from = str(root / "set.jsonl"), f"hf:{root / 'released'}"
    config.vocabulary, config.text_normalizer = "auto", "lower,basic"
    config.num_steps = config.checkpoint_every = config.log_every = config.eval.every = 1
    config.compression.squeeze, config.compression.query_pool = (1,), (1,)
    config.input.batch_seconds, config.input.buckets, config.input.speed = 6.0, 1, 0.0
    return config


@pytest.fixture(scope="module")
def trained(root):
    train(finetuning(root), root / "run")
    return root / "run"


def evaluation(root, trained, **changes):
    config = evaluate_config.get_config()
    config.data, config.init_from, config.repeats = str(root / "set.jsonl"), str(trained), 1
    config.settings, config.input.buckets = "s1q1k1", 1
    config.update_from_flattened_dict(changes)
    return config


def rows_of(workdir):
    lines = (workdir / "transcripts" / "s1q1k1.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row["reference"] for row in map(json.loads, lines)}


def test_the_first_screen_says_what_becomes_of_the_transcripts(root):
    notes = "\n".join(open_task(finetuning(root)).transcripts.notes)
    assert "text_normalizer=lower,basic; 10 symbols; '|' ends a word" in notes
    assert "5 of the transcripts: i l t à ô" in notes and "rare" not in notes
    assert "2 of 5 transcripts are empty (first: train2); they train silence" in notes
    assert "1 format characters in 1 transcripts are dropped (first: train3): U+200B zero width space" in notes
    assert (
        "1 transcripts have more symbols than their audio has frames, at every setting: train3 (42 needed, 29" in notes
    )


def test_a_vocabulary_that_nobody_can_read_is_asked_for(root):
    config = finetuning(root)
    config.vocabulary = ""
    with pytest.raises(UserError, match=r"not a vocabulary.*--config\.vocabulary=auto"):
        open_task(config)


def test_training_spells_letters_and_takes_silence(trained):
    vocabulary = Vocabulary.load(trained / "vocab.json")
    assert vocabulary.symbols[5:] == ("i", "l", "t", "à", "ô") and vocabulary.normalizer == "lower,basic"
    (row,) = read_metrics(trained)
    assert np.isfinite(row["loss"]) and row["loss"] > 0
    assert row["ctc_invalid_frac"] == pytest.approx(1 / 5)  # the long one; not those of silence


def test_held_out_tells_silence_from_what_has_no_symbols(trained):
    (row,) = read_rows(trained / FILE)
    assert row["words"] == 4 and np.isfinite(row["loss"]) and row["ctc_invalid_frac"] == 0


def test_evaluation_counts_as_training_wrote(root, trained, tmp_path, capsys):
    (point,) = evaluate(evaluation(root, trained), tmp_path)
    printed = capsys.readouterr().out
    assert rows_of(tmp_path) == {"test0": "tôi là", "test1": "", "test2": "", "test3": "tôi là"}  # the null is left out
    assert (point.words, point.utterances, point.empty_references) == (4, 4, 2)
    assert "text_normalizer=lower,basic" in printed and "test4 has no transcript" in printed
    assert "2 references are empty; what is written there counts as insertions" in printed
    assert json.loads((tmp_path / "tradeoff.json").read_text())[0]["empty_references"] == 2


def test_another_normalizer_is_for_references_and_hypotheses(root, trained, tmp_path):
    (point,) = evaluate(evaluation(root, trained, text_normalizer="upper"), tmp_path)
    assert set(rows_of(tmp_path).values()) == {"TÔI, LÀ", "", "?!", "TÔI LÀ"} and point.empty_references == 1
    lines = (tmp_path / "transcripts" / "s1q1k1.jsonl").read_text(encoding="utf-8").splitlines()
    said = "".join(json.loads(line)["hypothesis"] for line in lines)
    assert said == said.upper()


def test_an_n_gram_of_the_same_letters(root, tmp_path):
    config = lm_config.get_config()
    config.data, config.order, config.text_normalizer = str(root / "set.jsonl"), 2, "lower,basic"
    table = read_arpa(build_lm(config, tmp_path).read_text(encoding="utf-8"))
    assert {gram[0] for gram in table if len(gram) == 1} == {"<unk>", "<s>", "</s>", "tôi", "là"}


def test_a_folder_without_a_vocabulary_goes_in_and_out(root, tmp_path):
    folder = shutil.copytree(RELEASED, tmp_path / "bare")
    for name in ("vocab.json", "tokenizer_config.json"):
        (folder / name).unlink()
    config = export_config.get_config()
    config.init_from, config.format, config.setting = f"hf:{folder}", "hf", "s1q1k1"
    export(config, tmp_path / "out")
    assert not (tmp_path / "out" / "vocab.json").exists()
    before, after = open_released(str(folder)).parameters(), open_released(str(tmp_path / "out")).parameters()
    jax.tree.map(np.testing.assert_array_equal, before, after)
    with pytest.raises(UserError, match=r"vocab\.json: no such file"):
        evaluate(evaluation(root, f"hf:{folder}"), tmp_path / "evaluation")
