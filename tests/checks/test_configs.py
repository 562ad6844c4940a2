"""Every key has a rule, and nonsense is one line with the mend before JAX is loaded or data are opened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import ConfigDict

from sew_jax import main as command
from sew_jax.checks.check import MODES, check_config, recorded_defaults
from sew_jax.checks.modes import Mode
from sew_jax.checks.rules import NO_DEFAULT, Number, Rule
from sew_jax.config_files import FOLDER, load_config
from sew_jax.decoding.beam_options import BeamOptions, chosen_options
from sew_jax.errors import UserError
from sew_jax.evaluation.evaluate import evaluate
from sew_jax.training.train import train

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.name for path in FOLDER.glob("[a-z]*.py"))
OTHER_SIZES = ["pretrain.py:base,fixed", "pretrain.py:inherit", "pretrain.py:large_lv60k", "finetune.py:10h"]
OTHER_SIZES += ["pretrain.py:continued", "pretrain.py:continued,fixed,data2vec2"]
OTHER_SIZES += ["finetune.py:stochastic", "finetune.py:10h,stochastic"]
OTHER_SIZES += ["pretrain.py:demo,distill", "pretrain.py:inherit,distill"]
OTHER_SIZES += [
    "pretrain.py:slim_200",
    "pretrain.py:gpu_day",
    "pretrain.py:cpu_hour",
    "plan.py:xlsr_1b",
    "study.py:large,100h",
]
FIRST_KEYS = json.loads((Path(__file__).parent / "first_keys.json").read_text())


def complete(name):
    """A config with what its user must name."""
    config = load_config(name)
    for key, value in {"init_from": "runs/some", "audio": "talk.wav"}.items():
        if key in config:
            config[key] = value
    return config


@pytest.mark.parametrize("name", CONFIGS + OTHER_SIZES)
def test_each_config_of_the_project_is_as_its_rules_say(name):
    check_config(complete(name))


def test_each_mode_has_a_config_file():
    assert {load_config(name).mode for name in CONFIGS} == MODES.keys()


def groups(config, prefix=""):
    """(prefix of its keys, group) of a config, itself among them."""
    yield prefix, config
    for key in list(config):
        if isinstance(config[key], ConfigDict):
            yield from groups(config[key], f"{prefix}{key}.")


@pytest.mark.parametrize("name", CONFIGS)
def test_each_key_has_a_rule_and_each_rule_a_key(name):
    """Both ways: without a key the check fails by its name, and with one more, which no rule knows."""
    config = ConfigDict(complete(name).to_dict(), type_safe=False)
    for prefix, group in groups(config):
        for key in list(group):
            value = group.to_dict()[key]
            del group[key]
            with pytest.raises(UserError, match=rf"^{prefix}{key} is missing|^mode: None is unknown"):
                check_config(config)
            group[key] = None if isinstance(value, dict) else value
            if isinstance(value, dict):
                with pytest.raises(UserError, match=rf"^{prefix}{key}: None must be a group of keys"):
                    check_config(config)
                group[key] = ConfigDict(value)
        group.surprise = 1
        with pytest.raises(UserError, match=rf"^{prefix}surprise is no key of this mode"):
            check_config(config)
        del group["surprise"]
    check_config(config)


def rules(tree, prefix=""):
    for name, rule in tree.items():
        if isinstance(rule, Rule):
            yield prefix + name, rule
        else:
            yield from rules(rule.keys if isinstance(rule, Mode) else rule, f"{prefix}{name}.")


@pytest.mark.parametrize("mode", MODES)
def test_each_number_has_an_end_that_is_kept(mode):
    config = complete(next(name for name in CONFIGS if load_config(name).mode == mode))
    for key, rule in rules(MODES[mode].keys):
        if not isinstance(rule, Number):
            continue
        for value in (rule.low - 1e-6, rule.high + 1 if rule.high < 10**9 else float("nan"), "1"):
            changed = ConfigDict(config.to_dict(), type_safe=False)
            *folders, last = key.split(".")
            group = changed
            for folder in folders:
                group = group[folder]
            group[last] = value
            with pytest.raises(UserError, match=rf"^{key}: "):
                check_config(changed)


PRETRAIN, FINETUNE = ["pretrain.py"], ["finetune.py", "--config.init_from=x"]
EVALUATE, SEARCH = ["evaluate.py", "--config.init_from=x"], ["search.py", "--config.init_from=x"]
TRANSCRIBE = ["transcribe.py", "--config.init_from=x", "--config.audio=a.wav"]
EXPORT = ["export.py", "--config.init_from=x"]
NONSENSE = [
    # tracebacks once
    (PRETRAIN, "input.buckets=0", "must be at least 1"),
    (PRETRAIN, "mask.span=0", "must be at least 1"),
    (PRETRAIN, "input.crop_seconds=0", "must be above 0"),
    (PRETRAIN, "head.codes=0", "must be at least 2"),
    # compiled once
    (PRETRAIN, "input.threads=0", "must be at least 1"),
    (PRETRAIN, "input.batch_seconds=-5", "must be above 0 (seconds of audio)"),
    (PRETRAIN, "optim.warmup=2", "must lie between 0 and 1 (a fraction of num_steps)"),
    (PRETRAIN, "model.dropout=-0.2", "must be at least 0 and below 1"),
    (PRETRAIN, "optim.lr=-1", "must be above 0"),
    (PRETRAIN, "head.negatives=0", "must be at least 1"),
    (PRETRAIN, "input.workers=-3", "must be at least 0"),
    (PRETRAIN, "seed=-1", "must be at least 0"),
    (PRETRAIN, "optim.lr=nan", "must be above 0"),
    (PRETRAIN, "optim.eps=0", "must be above 0"),
    (PRETRAIN, "temperature.start=0", "must be above 0"),
    (PRETRAIN, "temperature.end=3", "must be at most temperature.start=2.0"),
    (PRETRAIN, "temperature.anneal=0", "must be above 0"),
    (PRETRAIN, "head.logit_temperature=0", "must be above 0"),
    (PRETRAIN, "model.layerdrop=1", "must be at least 0 and below 1"),
    (PRETRAIN, "mask.prob=1.5", "must lie between 0 and 1"),
    (PRETRAIN, "optim.total=0.01", "must be above optim.warmup=0.08"),
    # named before, and after more has been loaded
    (PRETRAIN, "num_steps=0", "must be at least 1 (updates)"),
    (PRETRAIN, "accumulate=0", "must be at least 1"),
    (PRETRAIN, "model.heads=5", "model.width: 128 is no multiple of model.heads 5"),
    (PRETRAIN, "model.upsampler=cubic", "choose one of residual, linear, repeat"),
    (PRETRAIN, "input.speed=0.5", "must be at least 0 and below 0.5"),
    (PRETRAIN, "compression.squeeze=0,1", "0 is not a factor"),
    # more
    (PRETRAIN, "seed=4294967296", "must be at most 4294967295"),
    (PRETRAIN, "num_steps=3000000000", "must be at most 2147483647"),
    (PRETRAIN, "input.max_seconds=0.2", "must be above input.min_seconds=0.5"),
    (PRETRAIN, "input.crop_seconds=0.1", "is shorter than mask.span=10 needs"),
    (PRETRAIN, "compression.names=s1q1k1,fast", "setting 'fast' is unknown"),
    (PRETRAIN, "compression.names=s1q1.2k1", "has 2 factors for model.layers=4"),
    (PRETRAIN, "compression.names=s1q1k1m0-0.2", "has 2 shares for model.layers=4"),
    (PRETRAIN, "eval.settings=s0q1k1", "0 is not a factor"),
    (PRETRAIN, "eval.every=0", "must be at least 1"),
    (PRETRAIN, "dtype=float64", "choose float32 or bfloat16"),
    (PRETRAIN, "remat=some", "choose one of none, dots, layers"),
    (PRETRAIN, "mesh.data=0", "must be a number of devices, or -1"),
    (PRETRAIN, "mesh.fsdp=-1", "both all the rest"),
    (PRETRAIN, "data=", "is empty; name a folder"),
    (["pretrain.py:base,fixed"], "sandwich.enabled=True", "a table of one setting"),
    (["plan.py:base,continued"], "pretrain.init_from=", "pretrain:continued goes on with its codebook"),
    (["pretrain.py:inherit"], "init_from=", "is empty; pretrain:inherit takes its architecture"),
    (FINETUNE, "optim.hold=0.95", "are more than all updates together"),
    (FINETUNE, "optim.final=0", "must be above 0 and at most 1"),
    (FINETUNE, "optim.freeze=1.1", "must lie between 0 and 1"),
    (FINETUNE, "mask.channel_span=0", "must be at least 1"),
    (FINETUNE, "sandwich.distill=-1", "must be at least 0"),
    (["finetune.py"], "init_from=", "is empty; set --config.init_from"),
    (EVALUATE, "repeats=0", "must be at least 1"),
    (EVALUATE, "beam.beam=0", "must be at least 1"),
    (EVALUATE, "beam.nbest=60", "must be at most beam.beam=50"),
    (EVALUATE, "beam.lm_weight=inf", "must be a finite number"),
    (EVALUATE, "tune_split=dev", "weights are those of an n-gram and a lexicon"),
    (SEARCH, "trials=0", "must be at least 1"),
    (SEARCH, "factors=2,4", "must have 1 among them"),
    (SEARCH, "dev_split=test", "is also a split to report on"),
    (SEARCH, "split=", "takes in all of the data, also dev_split=dev"),
    (TRANSCRIBE, "overlap_seconds=30", "must be below chunk_seconds=30.0"),
    (TRANSCRIBE, "format=doc", "choose one of jsonl, text, srt, vtt"),
    (EXPORT, "setting=fast", "setting 'fast' is unknown"),
    (["lm.py"], "order=1", "must lie between 2 and 6"),
    (["lm.py"], "input.max_bad=-1", "must be at least 0"),
    (["prepare.py"], "name=a b", "must be lower-case letters"),
    (["prepare.py"], "workers=-2", "must be a number of processes, or -1"),
    (["prepare.py"], "cut_seconds=0.5", "must be at least 1: a second, and twice min_seconds"),
    (["prepare.py"], "cut_seconds=0", "must be above 0"),
    (["plan.py"], "devices=0", "must be at least 1"),
    (["plan.py"], "pretrain.optim.lr=0", "must be above 0"),
    (["benchmark.py"], "batch=1,0", "must be numbers of at least 1"),
    (["benchmark.py"], "parts=speed", "'speed' is unknown"),
    (["benchmark.py"], "recipe.remat=dots", "is not what `training` times: one contrastive update"),
    (["benchmark.py"], "recipe.sandwich.enabled=True", "is not what `training` times: one contrastive update"),
    (["demo.py"], "finetune.input.threads=0", "must be at least 1"),
    (["demo.py"], "pretrain.temperature.end=-1", "must be above 0"),
    (["study.py"], "seeds=0,-1", "must be numbers of at least 0"),
    (["study.py"], "arms=best", "'best' is unknown"),
    (["study.py"], "finetune.split=", "takes in all of the data, also dev_split=dev"),
    (["study.py"], "pretrain.head.codes=1", "must be at least 2"),
]


@pytest.fixture
def forgetful_flags():
    """What a command line has defined and set is forgotten again."""
    argv = sys.argv
    yield
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()
    sys.argv = argv


@pytest.mark.parametrize(("config", "change", "problem"), NONSENSE, ids=lambda x: x if isinstance(x, str) else x[0])
@pytest.mark.usefixtures("forgetful_flags")
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'
def test_nonsense_is_one_line_before_anything_runs(config, change, problem, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "_run", lambda config, workdir: pytest.fail("it ran"))
    name, *flags_ = config
    sys.argv = ["main", f"--config=configs/{name}", *flags_, f"--config.{change}", f"--workdir={tmp_path / 'run'}"]
    assert command.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    key = change.split("=")[0]
    assert problem in err and (key in err.split(":")[1] or key in problem)
    assert not (tmp_path / "run").exists()


def test_jax_is_not_loaded_to_find_nonsense(tmp_path):
    program = (
        "import sys; from sew_jax import main; status = main.main(); "
        "sys.exit(1 if {'jax', 'flax', 'orbax', 'soundfile'} & sys.modules.keys() else status)"
    )
    command_line = ["--config=configs/study.py", "--config.finetune.optim.lr=-1", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *command_line], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: finetune.optim.lr: -1.0 must be above 0 (the learning rate at its peak)\n"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("finetune.py", "; the same command goes on from the last checkpoint"),
        ("prepare.py", "; what is done is kept, and the same command goes on from there"),
        ("evaluate.py", ""),
    ],
)
@pytest.mark.usefixtures("forgetful_flags")
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # ml_collections'
def test_who_interrupts_is_told_what_is_kept(name, kept, capsys, monkeypatch, tmp_path):
    def interrupted(config, workdir):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run", interrupted)
    sys.argv = ["main", f"--config=configs/{name}", f"--workdir={tmp_path / 'run'}"]
    sys.argv += ["--config.init_from=runs/some"] if name != "prepare.py" else []
    assert command.main() == 1 and capsys.readouterr().err == f"interrupted{kept}\n"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("evaluate.py", "beam.nbest", 5),
        ("evaluate.py", "beam.hot_words", "A"),
        ("transcribe.py", "nbest", 5),
        ("serve.py", "lm", "none"),
    ],
)
def test_what_search_alone_finds_asks_for_it(name, key, value):
    """And a lexicon is of use with it."""
    config = complete(name)
    config.beam.lexicon = "words.txt"
    assert chosen_options(config) is None
    with pytest.raises(UserError, match=r"beam\.lexicon: it is for beam search"):
        check_config(config)
    config.update_from_flattened_dict({key: value})
    check_config(config)
    options = chosen_options(config)
    assert options == BeamOptions(lexicon="words.txt", **{} if key == "lm" else {key.removeprefix("beam."): value})


def test_from_python_it_is_the_same(tmp_path):
    config = load_config("pretrain.py")
    config.input.threads = 0
    with pytest.raises(UserError, match=r"^input\.threads: 0 must be at least 1"):
        train(config, tmp_path / "run")
    config = complete("evaluate.py")
    config.input.buckets = 0
    with pytest.raises(UserError, match=r"^input\.buckets: 0 must be at least 1"):
        evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_key_that_is_nearly_right_gets_a_hint():
    config = load_config("pretrain.py")
    with config.unlocked():
        config.optim.warm_up = 0.1
    with pytest.raises(UserError, match=r"^optim\.warm_up is no key of this mode; did you mean warmup\?"):
        check_config(config)


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_a_key_that_joins_later_says_what_older_runs_were(mode):
    """`first_keys.json` has the keys of the first runs; it never grows: give a new key's rule a default instead."""
    without = [key for key, rule in rules(MODES[mode].keys) if rule.default is NO_DEFAULT]
    assert set(without) <= set(FIRST_KEYS[mode])


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_defaults_are_values_that_their_rules_allow(mode):
    table = dict(rules(MODES[mode].keys))
    for key, value in recorded_defaults(mode).items():
        assert not table[key].problem(value), key
