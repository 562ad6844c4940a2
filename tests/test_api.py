"""sew_jax from Python: the numbers of the training model, the text of the command line, and errors of one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

import sew_jax
from configs import evaluate as evaluate_config
from configs import transcribe as transcribe_config
from sew_jax.checkpoints.checkpointer import load_params
from sew_jax.compression import Compression
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.greedy import greedy
from sew_jax.evaluation.outputs import write_tradeoff
from sew_jax.models.backbone import Backbone
from sew_jax.models.encoder import Layer
from sew_jax.models.masking import MaskedFrames
from sew_jax.models.pretrain import PretrainModel
from sew_jax.training.setup import open_task
from sew_jax.transcription.chunking import bucket_of
from sew_jax.transcription.transcribe import transcribe
from tests.evaluation.test_tradeoff import point
from tests.released.inputs import waves
from tests.runs import begin_finetuned, finetuning, pretraining

ROOT = Path(__file__).parents[1]
RELEASED = Path(__file__).parent / "released"
OUTPUTS = np.load(RELEASED / "outputs.npz")
NOISE = (np.random.default_rng(0).normal(size=15_000) * 3000).astype(np.int16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("api")
    corpus = begin_finetuned(root)
    read = [soundfile.read(path, dtype="int16")[0] for path in sorted((corpus / "train").rglob("*.flac"))]
    soundfile.write(root / "long.wav", np.concatenate([*read, *read, *read]), 16_000)  # 39 s
    return root


@pytest.fixture(scope="module")
def model(runs):
    return sew_jax.load(runs / "finetune")


@pytest.fixture
def utterance(runs):
    return runs / "corpus/test/2/1/2-1-0001.flac"


def run_python(code: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_jax_is_imported_when_it_is_used():
    code = "import sys, sew_jax; assert 'load' in dir(sew_jax) and sew_jax.__version__; print('jax' in sys.modules)"
    done = run_python(code)
    assert done.returncode == 0 and done.stdout == "False\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sew_jax.nothing  # noqa: B018


def test_the_text_alone_is_on_standard_output(runs, model, utterance):
    code = "import sys, sew_jax; m = sew_jax.load(sys.argv[1]); print(m.transcribe(sys.argv[2], setting='s2q1k1').text)"
    done = run_python(code, runs / "finetune", utterance)
    assert done.returncode == 0, done.stderr
    assert done.stdout == model.transcribe(utterance, setting="s2q1k1").text + "\n"
    assert "compiled 1 programs" in done.stderr and "WARNING" not in done.stderr


def training_states(task, variables, wave, setting):
    """(T, D) of the training model, given one row of a batch: the backbone's output, and each layer's."""

    def is_kept(module, name):
        return isinstance(module, (Backbone, Layer)) and name == "__call__"

    before, after = (), ()
    if isinstance(task.model, PretrainModel):
        before, after = [MaskedFrames(np.zeros((1, 2), np.int32), np.ones((1, 2), bool), None)], [1.0]

    def apply(variables, wave, length):
        options = {"deterministic": True, "capture_intermediates": is_kept}
        return task.model.apply(variables, wave, length, *before, setting, *after, **options)[1]

    kept = jax.device_get(jax.jit(apply)(variables, wave[None], np.array([len(NOISE)])))["intermediates"]["backbone"]
    hidden, layers = kept["__call__"][0], range(task.model.backbone.layers)
    frames = hidden.length_B[0]
    outputs = [kept["encoder"][f"layer_{i}"]["__call__"][0] for i in layers]
    rows = [out[0][0][out[1].place_BxW[0]] if setting.merges else out[0] for out in outputs]
    repeated = [np.repeat(row, setting.squeeze, axis=0) for row in rows]
    return [hidden.context_BxTxD[0, :frames], *(layer[:frames] for layer in repeated)]


@pytest.mark.parametrize(
    ("mode", "setting"), [("pretrain", "s2q1k1"), ("finetune", "s1q1k1"), ("finetune", "s3q2k1m0.2")]
)
def test_features_are_the_hidden_states_of_the_training_model(runs, mode, setting):
    """To 1e-6 in a padded row; to 1e-6 of the largest alone, where sums are rounded otherwise."""
    corpus, compression = runs / "corpus", Compression.parse(setting)
    task = open_task(pretraining(corpus) if mode == "pretrain" else finetuning(corpus, runs / "pretrain"))
    variables = jax.jit(task.init)(jax.random.key(1))
    _, variables["params"] = load_params(runs / mode, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    padded = np.pad(NOISE, (0, bucket_of(len(NOISE), 480_000) - len(NOISE)))
    in_batch, alone = (training_states(task, variables, wave, compression) for wave in (padded, NOISE))
    model = sew_jax.load(runs / mode)
    ours = [model.features(NOISE, setting=setting), model.features(NOISE / 2**15, setting=compression, layer=1)]
    assert np.array_equal(ours[1], model.features(NOISE, setting=setting, layer=-1))
    assert len(in_batch) == len(alone) == len(ours) == 2
    for features, first, second in zip(ours, in_batch, alone, strict=True):
        assert features.dtype == np.float32 and features.shape == (46, 32)
        np.testing.assert_allclose(features, first, rtol=0, atol=1e-6)
        np.testing.assert_allclose(features, second, rtol=0, atol=1e-6 * np.abs(second).max())
        assert np.ptp(features, axis=0).min() > 0.01  # frames differ, so that a shift would be seen


@pytest.mark.parametrize("name", ["wav2vec2", "sew", "wav2vec2_pretraining", "xlsr_ctc"])
def test_features_of_released_checkpoints_are_those_of_transformers(name):
    """Also of those without a head; at squeeze 2 SEW's last odd frame has no state."""
    model = sew_jax.load(f"hf:{RELEASED / name}")
    wave = waves()[-1]
    key, (setting,) = f"{name}/{len(wave)}", model.settings
    squeeze = Compression.parse(setting).squeeze
    theirs = np.repeat(OUTPUTS[f"{key}/layer_1"], squeeze, axis=0)
    ours = model.features(wave, layer=1)
    assert len(ours) == 19 and (squeeze == 1) == (len(theirs) == 19)
    assert np.abs(ours[: len(theirs)] - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert not ours[len(theirs) :].any()
    if name in ("wav2vec2", "sew"):
        head = OUTPUTS[f"{key}/head"]
        assert np.abs(model.features(wave) - head).max() <= 1e-5 * np.abs(head).max()


def test_every_form_of_audio_reads_the_same(model, utterance):
    samples, rate = soundfile.read(utterance, dtype="int16")
    expected = model.transcribe(utterance)
    assert expected.text and expected.recording.name == str(utterance)
    forms = [str(utterance), utterance.read_bytes(), samples, (samples, rate), (samples / 2**15, rate)]
    assert {model.transcribe(form).hypothesis for form in forms} == {expected.hypothesis}
    for compute in (model.log_probs, model.features):
        first, *others = map(compute, forms)
        assert all(np.array_equal(first, other) for other in others)
    several = model.transcribe([forms[1], NOISE, forms[3]])
    assert not any(t.recording.data for t in several)  # what is kept of many is their text
    assert [t.hypothesis for t in several] == [t.hypothesis for t in map(model.transcribe, (samples, NOISE, samples))]
    assert model.transcribe([]) == []


def test_an_array_of_another_rate_is_resampled(model, tmp_path):
    fast = np.repeat(NOISE, 3)
    soundfile.write(tmp_path / "48.wav", fast, 48_000)
    transcript = model.transcribe((fast, 48_000))
    assert transcript.seconds == pytest.approx(len(NOISE) / 16_000)
    assert transcript.hypothesis == model.transcribe(tmp_path / "48.wav").hypothesis
    assert np.array_equal(model.log_probs(fast, rate=48_000), model.log_probs(tmp_path / "48.wav"))


def test_transcripts_are_those_of_the_command_line(runs, model, utterance, tmp_path, capsys):
    """Short and long audio: text, times and confidences."""
    config = transcribe_config.get_config()
    config.init_from, config.setting = str(runs / "finetune"), "s2q1k1"
    config.audio = f"{utterance},{runs / 'long.wav'}"
    transcribe(config, tmp_path)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    transcripts = model.transcribe([utterance, runs / "long.wav"], setting="s2q1k1")
    assert [json.loads(t.as_json()) for t in transcripts] == lines and lines[1]["words"][-1]["end"] > 30
    for transcript in transcripts:
        assert " ".join(word.text for word in transcript.words) == transcript.text
        assert all(0 <= w.begin < w.end <= transcript.seconds and 0 < w.confidence <= 1 for w in transcript.words)
        assert transcript.confidence == pytest.approx(np.mean([word.confidence for word in transcript.words]))


def test_log_probs_are_what_transcribe_decodes(model, utterance):
    vocabulary = model._recognizer.vocabulary
    for setting in model.settings:
        log_prob_TxV = model.log_probs(utterance, setting=setting)
        np.testing.assert_allclose(np.exp(log_prob_TxV).sum(1), 1, rtol=1e-5)
        text = model.transcribe(utterance, setting=setting).text
        assert greedy(log_prob_TxV.argmax(-1), vocabulary) == text != ""
    assert log_prob_TxV.shape[1] == len(vocabulary)


def test_programs_are_compiled_once(runs, utterance, capsys):
    model = sew_jax.load(runs / "finetune")
    assert model.settings == ["s1q1k1", "s2q1k1"]
    for audio in (utterance, [utterance, NOISE], runs / "corpus/test/2/1/2-1-0004.flac"):  # all in a bucket of 2 s
        model.transcribe(audio, setting="s2q1k1")
    for wave in (NOISE, NOISE[:9000]):
        model.features(wave), model.features(wave, layer=1), model.log_probs(wave)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("compiled 1 programs") == 4 == len(model._recognizer.programs)
    model.transcribe(runs / "long.wav", setting="s2q1k1")  # chunks of 30 s
    assert len(model._recognizer.programs) == 5


def test_a_budget_picks_the_setting(runs, model, utterance, tmp_path):
    with pytest.raises(sew_jax.UserError, match="budget: it needs a table"):
        model.transcribe(utterance, budget=0.6)
    write_tradeoff([point(), point("s2q1k1", 0.12, 1.0)], tmp_path)
    assert model.transcribe(utterance, budget=0.6, tradeoff=tmp_path).setting == Compression(2)
    assert model.transcribe(utterance, budget="wer=10%", tradeoff=tmp_path).setting == Compression()
    write_tradeoff([point("s2q1k1")], runs)  # where the demo leaves it
    try:
        assert model.transcribe(utterance, budget="1.5").setting == Compression(2)
    finally:
        for path in runs.glob("tradeoff.*"):
            path.unlink()


def test_beam_search_with_a_lexicon(model, utterance, tmp_path):
    (tmp_path / "words.txt").write_text("ONE\nTWO\n")
    options = BeamOptions(lexicon=str(tmp_path / "words.txt"), word_score=2.0)
    text = model.transcribe(utterance, lm=options).text
    assert text and set(text.split()) <= {"ONE", "TWO"}
    assert model.transcribe(utterance).text != text


def test_the_best_few_as_on_the_command_line_and_hot_words(runs, model, utterance, tmp_path, capsys):
    transcript = model.transcribe(utterance, setting="s2q1k1", nbest=4)
    texts, scores = zip(*((h.text, h.score) for h in transcript.nbest), strict=True)
    assert len(set(texts)) == 4 and list(scores) == sorted(scores, reverse=True) and transcript.text == texts[0]
    config = transcribe_config.get_config()
    config.init_from, config.setting, config.nbest = str(runs / "finetune"), "s2q1k1", 4
    config.audio = str(utterance)
    transcribe(config, tmp_path)
    line, same = json.loads(capsys.readouterr().out), json.loads(transcript.as_json())
    assert [row["text"] for row in same["nbest"]] == list(texts)
    found, expected = ([row["score"] for row in row.pop("nbest")] for row in (line, same))
    assert found == pytest.approx(expected, abs=1e-3) and len(found) == 4  # of random weights, which nearly tie
    assert line.keys() == same.keys() and line["setting"] == "s2q1k1"
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("ONE\nTWO\n")
    options = BeamOptions(lexicon=str(lexicon), word_score=2.0, hot_boost=40.0)
    assert "MELON" in model.transcribe(utterance, lm=options, hot_words=["MELON"]).text.split()


BAD = {
    "unknown setting": (lambda m: m.features(NOISE, setting="fast"), "setting 'fast' is unknown"),
    "too many layers": (lambda m: m.features(NOISE, setting="s1q1.2k1"), "2 factors, but the model has 1 layers"),
    "no hypotheses": (lambda m: m.transcribe(NOISE, nbest=0), "nbest=0"),
    "hot words of other letters": (lambda m: m.transcribe(NOISE, hot_words=["ÄÖ"]), "hot_words: 'ÄÖ' has"),
    "hot words as one text": (lambda m: m.transcribe(NOISE, hot_words="ONE, ÄÖ"), "hot_words: 'ÄÖ' has"),
    "no such layer": (lambda m: m.features(NOISE, layer=2), "layer: 2 must be 1 to 1"),
    "layer of none": (lambda m: m.features(NOISE, layer=0), "layer: 0 must be 1 to 1, -1 for the last"),
    "empty": (lambda m: m.log_probs(np.zeros(0)), "audio: the array is empty"),
    "empty to transcribe": (lambda m: m.transcribe(np.zeros(0, np.int16)), "audio: the array is empty"),
    "two channels": (lambda m: m.features(np.zeros((2, 16_000))), r"shape \(2, 16000\) is not mono"),
    "wrong rate": (lambda m: m.transcribe(NOISE, rate=0), "rate: 0 is no sample rate"),
    "rate that is none": (lambda m: m.transcribe((NOISE, "fast")), "rate: 'fast' is no sample rate"),
    "NaN": (lambda m: m.log_probs(np.full(9000, np.nan)), "holds NaN or infinite"),
    "wide integers": (lambda m: m.features(np.full(9000, 10**6)), "an array holds integers of more than 16 bits"),
    "complex": (lambda m: m.features(np.zeros(9000, complex)), "an array of complex128 holds no samples"),
    "no audio": (lambda m: m.transcribe(7), "audio: int is none; give a path"),
    "missing file": (lambda m: m.transcribe("nowhere.flac"), "audio: nowhere.flac does not exist"),
    "missing in a list": (lambda m: m.transcribe([NOISE, "nowhere.flac"]), "audio: nowhere.flac does not exist"),
    "missing for features": (lambda m: m.features("nowhere.flac"), "audio: nowhere.flac does not exist"),
    "no file's bytes": (lambda m: m.transcribe(b"text"), "audio: a file's bytes cannot be decoded"),
    "setting and budget": (lambda m: m.transcribe(NOISE, setting="s1q1k1", budget=1, tradeoff="x"), "are both given"),
    "no table": (lambda m: m.transcribe(NOISE, budget=1, tradeoff="nowhere"), "does not exist; run configs/evaluate"),
    "a pair of paths": (lambda m: m.transcribe(("a.flac", "b.flac")), "audio: tuple is none; give a path"),
    "no time at all": (lambda m: m.transcribe(NOISE, budget=0), "budget: it needs a table"),
    "no language model": (lambda m: m.transcribe(NOISE, lm="nowhere.arpa"), "lm: nowhere.arpa cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(model, case):
    call, message = BAD[case]
    with pytest.raises(sew_jax.UserError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_a_model_without_a_head_says_so(runs):
    model = sew_jax.load(runs / "pretrain")
    for call in (model.transcribe, model.log_probs):
        with pytest.raises(sew_jax.UserError, match="has no CTC head yet; fine-tune it first"):
            call(NOISE)


@pytest.mark.parametrize(
    ("where", "options", "message"),
    [
        ("", {}, "init_from is empty"),
        ("nowhere", {}, "does not exist; give the workdir"),
        ("RUN", {"dtype": "float16"}, "dtype"),
    ],
)
def test_bad_models_are_one_line(runs, where, options, message):
    with pytest.raises(sew_jax.UserError, match=message) as error:
        sew_jax.load(str(runs / "finetune") if where == "RUN" else where, **options)
    assert "\n" not in str(error.value)


def test_a_config_of_another_mode_is_named(runs, tmp_path):
    with pytest.raises(
        sew_jax.UserError, match=r"mode: 'evaluate' is that of another config; take pretrain or finetune\.py"
    ):
        sew_jax.train(evaluate_config.get_config(), tmp_path)
    with pytest.raises(sew_jax.UserError, match=r"mode: 'pretrain' .* take evaluate\.py"):
        sew_jax.evaluate(pretraining(runs / "corpus"), tmp_path)


def test_training_and_evaluation(runs, tmp_path):
    config = finetuning(runs / "corpus", runs / "pretrain")
    config.num_steps, config.compression.squeeze, config.eval.split = 1, (1,), ""
    assert sew_jax.train(config, str(tmp_path / "run")).step == 1
    measured = evaluate_config.get_config()
    measured.data, measured.init_from, measured.repeats = str(runs / "corpus"), str(tmp_path / "run"), 1
    (only,) = sew_jax.evaluate(measured, tmp_path / "evaluation")
    assert only.setting == "s1q1k1" and only.utterances == 5
    model = sew_jax.load(tmp_path / "run")
    texts = [t.text for t in model.transcribe(sorted((runs / "corpus/test").rglob("*.flac")))]
    lines = (tmp_path / "evaluation/transcripts/s1q1k1.jsonl").read_text().splitlines()
    assert texts == [json.loads(line)["hypothesis"] for line in lines]
    assert re.fullmatch(r"Model\(.*/run, update 1: s1q1k1\)", repr(model))


def test_another_run_time_gives_the_same_log_probs(runs, model, utterance, tmp_path):
    """And a budget may pick one."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    other = sew_jax.load(runs / "finetune", runtime="onnxruntime")
    np.testing.assert_allclose(other.log_probs(utterance), model.log_probs(utterance), rtol=0, atol=1e-4)
    with pytest.raises(sew_jax.UserError, match="onnxruntime computes log-probabilities alone"):
        other.features(utterance)
    write_tradeoff([point(), point("s1q1k1", 0.101, 0.5, engine=("onnxruntime", "int8"))], tmp_path)
    text = model.transcribe(utterance, budget=0.5, tradeoff=tmp_path).text
    int8 = sew_jax.load(runs / "finetune", runtime="onnxruntime", dtype="int8")
    assert text == int8.transcribe(utterance, setting="s1q1k1").text
    with pytest.raises(sew_jax.UserError, match="onnxruntime computes in float32, int8, not in bfloat16"):
        sew_jax.load(runs / "finetune", runtime="onnxruntime", dtype="bfloat16")
