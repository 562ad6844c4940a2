"""Keys of the modes that use a trained model, and of the n-gram that decodes with it."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from sew_jax.checks.modes import (
    BATCH_SECONDS,
    BUCKETS,
    DATA,
    DTYPE_OR_TRAINED,
    INIT_FROM,
    LANGUAGE,
    MAX_BAD,
    MESH,
    READERS,
    SEED,
    TEXT_NORMALIZER,
    Mode,
    Rules,
    a_language_is_of_a_released_checkpoint,
    choice,
    mode,
    one_axis_is_the_rest,
    some_of,
)
from sew_jax.checks.rules import (
    Factors,
    Flag,
    Number,
    Parsed,
    Settings,
    Text,
    Workers,
    at_least,
    positive,
    whole,
)
from sew_jax.engines.run_times import ALL_PRECISIONS, PRECISIONS, RUNTIMES
from sew_jax.names import split_names

_BEAM: Rules = {
    "lexicon": Text(),
    "beam": whole(1, "hypotheses kept at each frame"),
    "beam_tokens": whole(0, "symbols of a frame that may go on; 0: all"),
    "threshold": positive("how far a hypothesis may be behind the best"),
    "lm_weight": Number(),
    "word_score": Number(),
    "sil_score": Number(),
    "log_add": Flag(),
    "hot_words": Text(),
    "hot_boost": Number(),
}
_BEAM_OF_MANY: Rules = {**_BEAM, "nbest": whole(1, "hypotheses of each utterance"), "workers": Workers()}
_EVALUATE: Rules = {
    "init_from": INIT_FROM,
    "language": LANGUAGE,
    "data": DATA,
    "split": Text(),
    "text_normalizer": TEXT_NORMALIZER,
    "repeats": whole(1, "timed rounds"),
    "dtype": choice(*ALL_PRECISIONS, ""),
    "runtimes": Parsed("name run times, joined by commas", some_of(RUNTIMES), default="jax"),
    "dtypes": Parsed("", some_of(ALL_PRECISIONS), empty=True, default=""),
    "lm": Text(),
    "beam": _BEAM_OF_MANY,
    "tune_split": Text(),
    "tune_trials": whole(1, "weights that are tried"),
    "mesh": MESH,
    "input": {"batch_seconds": BATCH_SECONDS, "buckets": BUCKETS, **READERS},
}
_PICKED: Rules = {
    "init_from": INIT_FROM,
    "language": LANGUAGE,
    "budget": Text(),
    "tradeoff": Text(),
}


def asks_for_search(config: ConfigDict) -> bool:
    """Whether beam search is wanted, which alone weighs an n-gram and finds hot words and several hypotheses."""
    return bool(config.lm or config.beam.hot_words) or _wanted(config)[1] > 1


def _wanted(config: ConfigDict) -> tuple[str, int]:
    """Hypotheses, and the key that says how many; a server's requests say it themselves."""
    return ("nbest", config.nbest) if "nbest" in config else ("beam.nbest", config.beam.get("nbest", 1))


def _beam_holds_its_results(config: ConfigDict) -> Iterator[tuple[str, str]]:
    key, nbest = _wanted(config)
    if nbest > config.beam.beam:
        yield key, f"{nbest} must be at most beam.beam={config.beam.beam}"


def _a_lexicon_is_for_beam_search(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.beam.lexicon and not asks_for_search(config):
        yield "beam.lexicon", "it is for beam search; name an n-gram by lm, or lm=none to search without one"


def _weights_are_of_something(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.tune_split and not (config.lm not in ("", "none") or config.beam.lexicon):
        yield "tune_split", "weights are those of an n-gram and a lexicon; name one by lm or beam.lexicon"


def _dev_is_not_test(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if not split_names(config.split):
        yield "split", f"it takes in all of the data, also dev_split={config.dev_split}; name the splits to report on"
    if set(split_names(config.dev_split)) & set(split_names(config.split)):
        problem = f"{config.dev_split!r} is also a split to report on, which would flatter what was searched"
        yield "dev_split", problem


def _one_is_a_factor(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if 1 not in config.factors:
        yield "factors", f"{tuple(config.factors)} must have 1 among them: no pooling"


def _one_thing_picks(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.setting and config.budget:
        yield "budget", f"{config.budget} and setting={config.setting} are both given; one picks the setting"


def _chunks_go_on(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.overlap_seconds >= config.chunk_seconds:
        yield "overlap_seconds", f"{config.overlap_seconds} must be below chunk_seconds={config.chunk_seconds}"


def _stream_goes_on(config: ConfigDict) -> Iterator[tuple[str, str]]:
    stream = config.stream
    if stream.overlap_seconds >= stream.chunk_seconds:
        problem = f"{stream.overlap_seconds} must be below stream.chunk_seconds={stream.chunk_seconds}"
        yield "stream.overlap_seconds", problem


def _there_is_text(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if not config.data and not config.text:
        yield "text", "there is none to count; name transcripts by data and split, or a file by text"
    if config.eval_split and not config.data:
        yield "eval_split", f"{config.eval_split!r} is a split of data, which is empty"


def _a_run_time_has_the_precision(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.dtype and config.dtype not in PRECISIONS[config.runtime or "jax"]:
        those = " or ".join(name for name, dtypes in PRECISIONS.items() if config.dtype in dtypes)
        yield "dtype", f"{config.runtime or 'jax'} does not compute in {config.dtype}; name runtime={those}"


def _each_run_time_has_a_precision(config: ConfigDict) -> Iterator[tuple[str, str]]:
    wanted = split_names(config.dtypes)
    key, named = ("dtypes", wanted) if wanted else ("dtype", split_names(config.dtype))
    for runtime in split_names(config.runtimes):
        if named and not set(named) & set(PRECISIONS[runtime]):
            yield key, f"{runtime} computes in {', '.join(PRECISIONS[runtime])}, and none of them is named"
    if wanted and config.dtype:
        yield "dtypes", f"{config.dtypes} and dtype={config.dtype} are both given; name all in dtypes"


def _bytes_are_for_onnx(config: ConfigDict) -> Iterator[tuple[str, str]]:
    if config.weights == "int8" and config.format != "onnx":
        yield "weights", f"int8 is for format=onnx; {config.format} takes float16 or float32"


_BEAM_SEARCH = (_a_lexicon_is_for_beam_search, _beam_holds_its_results, _weights_are_of_something)
EVALUATE = Mode(
    keys={"mode": mode("evaluate"), "settings": Settings(), **_EVALUATE},
    together=(
        *_BEAM_SEARCH,
        _each_run_time_has_a_precision,
        one_axis_is_the_rest,
        a_language_is_of_a_released_checkpoint,
    ),
    filled=("init_from",),
)
SEARCH = Mode(
    keys={
        "mode": mode("search"),
        **_EVALUATE,
        "settings": Settings(optional=True),  # named by the search itself
        "dev_split": Text(hint="name a split to count errors on"),
        "trials": whole(1, "settings that are tried"),
        "squeeze": Factors(empty=True),
        "factors": Factors(),
        "seed": SEED,
    },
    together=(*EVALUATE.together, _dev_is_not_test, _one_is_a_factor),
)
TRANSCRIBE = Mode(
    keys={
        "mode": mode("transcribe"),
        **_PICKED,
        "audio": Text(hint="name files, folders, or - for standard input, joined by commas"),
        "setting": Settings(),
        "runtime": choice(*RUNTIMES, ""),
        "dtype": choice(*ALL_PRECISIONS, ""),
        "format": choice("jsonl", "text", "srt", "vtt"),
        "nbest": whole(1, "hypotheses of each file"),
        "lm": Text(),
        "beam": _BEAM,
        "chunk_seconds": positive("longer audio is computed in chunks"),
        "overlap_seconds": at_least(0, "of two neighbours"),
        "mesh": MESH,
        "input": {"batch_seconds": BATCH_SECONDS},
    },
    together=(
        _a_lexicon_is_for_beam_search,
        _beam_holds_its_results,
        _one_thing_picks,
        _a_run_time_has_the_precision,
        _chunks_go_on,
        one_axis_is_the_rest,
        a_language_is_of_a_released_checkpoint,
    ),
)
SERVE = Mode(
    keys={
        "mode": mode("serve"),
        "init_from": INIT_FROM,
        "language": LANGUAGE,
        "settings": Settings(),
        "tradeoff": Text(),
        "host": Text(hint="write 127.0.0.1 for this machine alone, 0.0.0.0 for others too"),
        "port": whole(0, "0: one that is free", 65535),
        "queue": whole(1, "requests that are accepted at once", 1024),
        "max_mib": positive("of a file"),
        "max_seconds": positive("of a file's audio"),
        "stream": {
            "chunk_seconds": Number("audio that is computed at once", 0, 30, above=True),
            "overlap_seconds": at_least(0, "of two neighbours"),
        },
        "lm": Text(),
        "beam": _BEAM,
        "runtime": choice(*RUNTIMES, ""),
        "dtype": choice(*ALL_PRECISIONS, ""),
    },
    together=(
        _a_lexicon_is_for_beam_search,
        _a_run_time_has_the_precision,
        _stream_goes_on,
        a_language_is_of_a_released_checkpoint,
    ),
)
EXPORT = Mode(
    keys={
        "mode": mode("export"),
        **_PICKED,
        "dtype": DTYPE_OR_TRAINED,
        "format": choice("hf", "stablehlo", "onnx", "sew_jax"),
        "weights": choice("float16", "float32", "int8"),
        "setting": Settings(),
        "drop_tail": Flag(),
    },
    together=(_one_thing_picks, _bytes_are_for_onnx, a_language_is_of_a_released_checkpoint),
)
LM = Mode(
    keys={
        "mode": mode("lm"),
        "data": Text(),
        "split": Text(),
        "text": Text(),
        "text_normalizer": TEXT_NORMALIZER,
        "order": whole(2, "KenLM reads no longer ones", 6),
        "eval_split": Text(),
        "input": {"max_bad": MAX_BAD},
    },
    together=(_there_is_text,),
)
