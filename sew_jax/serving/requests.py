"""What a request may ask for, and what is said of one that may not be: errors in OpenAI's form."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sew_jax.compression import Compression
from sew_jax.console import say
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.engines.run_times import Engine
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import chosen_setting
from sew_jax.names import split_names

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_GRANULARITIES = ("segment", "word")
FIELDS = (
    "file",
    "model",
    "setting",
    "budget",
    "response_format",
    "timestamp_granularities[]",
    "prompt",
    "hot_words",
    "hot_boost",
    "nbest",
    "language",
    "temperature",
)
SEARCH_FIELDS = ("prompt", "hot_words", "hot_boost", "nbest")
_WITH_NBEST = ("json", "verbose_json")
_MOST_BOOST = 100.0  # above, nothing but hot words is written
_NAME = re.compile(r"[^/\\\0]*")


class BadRequest(Exception):
    """A request that cannot be answered, with the status, and the field and the code that OpenAI's clients look at."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.status, self.headers = status, {}
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def fault(where: str, error: Exception) -> BadRequest:
    """What a client is told of a fault of the server's own, of which the log says more."""
    say(f"! {where}: {type(error).__name__}: {error}")
    return BadRequest("the server failed; its log says why", code="internal", status=500)


@dataclasses.dataclass(frozen=True)
class Served:
    """What there is to ask for.

    Attributes:
      name: of the model; as a request's model it means the first setting.
      settings: compiled ones; the first is computed where none is asked for.
      tradeoff: of what a budget picks from; empty: the model's own.
      engine: what computes, whose points at these settings a budget picks from.
      max_bytes, max_seconds: of a request.
      beam: of the search where a request asks for one.
      searched: whether the others are decoded by that search, too; else by the best path.
    """

    name: str
    settings: Sequence[Compression]
    tradeoff: str
    engine: Engine
    max_bytes: int
    max_seconds: float
    beam: BeamOptions
    searched: bool

    def setting(self, asked: Mapping[str, str]) -> Compression:
        """That which `setting` names, or `budget` picks, or else `model`.

        Raises:
          BadRequest: none of those that are served.
        """
        names = [setting.name for setting in self.settings]
        key = next((key for key in ("setting", "budget", "model") if asked.get(key)), "")
        if not key or (key == "model" and asked[key] == self.name):
            return self.settings[0]
        if asked.get("setting") and asked.get("budget"):
            raise BadRequest("setting and budget are both given; one picks the setting", "budget")
        if key == "model" and asked[key] not in names:
            message = f"model {asked[key]!r} is not served; choose one of {', '.join([*names, self.name])}"
            raise BadRequest(message, key, "model_not_found", 404)
        try:
            chosen = chosen_setting(
                "" if key == "budget" else asked[key],
                asked.get("budget", ""),
                self.tradeoff,
                init_from=self.name,
                runtimes=(self.engine.runtime,),
                dtype=self.engine.dtype,
                settings=self.settings,
            )
        except UserError as error:
            raise BadRequest(str(error), key) from error
        if chosen not in self.settings:
            raise BadRequest(f"setting {chosen.name!r} is not served; choose one of {', '.join(names)}", key)
        return chosen

    def search(self, asked: Mapping[str, str]) -> BeamOptions | None:
        """What finds the hypotheses: beam search where hot words or several hypotheses are asked for; None: best path.

        Raises:
          BadRequest: a field makes no sense. Whether the model can spell the words is not known here.
        """
        if asked.get("prompt") and asked.get("hot_words"):
            raise BadRequest("prompt and hot_words are both given; both are words that are favoured", "prompt")
        words = tuple(split_names(asked.get("hot_words") or asked.get("prompt", "")))
        nbest = int(_number(asked, "nbest", 1, self.beam.beam, whole=True)) if asked.get("nbest") else 1
        words = (*self.beam.hot_words, *words)
        boost = self.beam.hot_boost
        if asked.get("hot_boost"):
            boost = _number(asked, "hot_boost", -_MOST_BOOST, _MOST_BOOST)
            if not words:
                raise BadRequest("hot_boost: there are no words to favour; name them by hot_words", "hot_boost")
        if not words and nbest == 1 and not self.searched:
            return None
        try:
            return dataclasses.replace(self.beam, hot_words=words, hot_boost=boost, nbest=nbest)
        except UserError as error:  # of a server that weighs no n-gram
            raise BadRequest(str(error), "hot_words") from error


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a request asks for, besides its audio."""

    setting: Compression
    form: str
    granularities: frozenset[str]
    language: str
    search: BeamOptions | None


def read_fields(fields: Iterable[tuple[str, Any]], served: Served) -> tuple[Any, Wanted]:
    """The upload, and what is wanted of it.

    Args:
      fields: of the form: texts, and uploads, which have a `filename`.

    Raises:
      BadRequest: with the field and the mend.
    """
    fields = list(fields)
    asked: dict[str, Any] = {}
    granularities = set()
    for name, value in fields:
        if name == "stream" and value == "false":
            continue
        if name not in FIELDS:
            raise BadRequest(f"field {name!r} is unknown; this server knows {', '.join(FIELDS)}", name)
        if (name == "file") == isinstance(value, str):
            what = "must be an upload, as curl's -F file=@speech.flac makes it" if name == "file" else "must be a text"
            raise BadRequest(f"{name}: {what}", name)
        if name == "timestamp_granularities[]":
            granularities.add(value)
        elif name in asked:
            raise BadRequest(f"{name}: it is given twice", name)
        else:
            asked[name] = value
    if "file" not in asked:
        raise BadRequest("file: there is none, or its upload broke off; send one as multipart/form-data", "file")
    if not _NAME.fullmatch(asked["file"].filename or ""):
        raise BadRequest("file: its name must be that of a file, without a path", "file")
    form = asked.get("response_format", "json")
    if form not in FORMATS:
        raise BadRequest(f"response_format: {form!r} is unknown; choose one of {', '.join(FORMATS)}", "response_format")
    if wrong := sorted(granularities - {*_GRANULARITIES}):
        raise BadRequest(
            f"timestamp_granularities[]: {wrong[0]!r} is unknown; choose segment or word", "timestamp_granularities[]"
        )
    if granularities and form != "verbose_json":
        raise BadRequest(
            "timestamp_granularities[]: they take response_format=verbose_json", "timestamp_granularities[]"
        )
    if asked.get("temperature"):  # clients send it; search has none
        _number(asked, "temperature", 0, 1, "; it changes nothing here")
    search = served.search(asked)
    if search and search.nbest > 1 and form not in _WITH_NBEST:
        raise BadRequest(f"nbest: several stand in JSON alone; take response_format={_WITH_NBEST[0]}", "nbest")
    setting, language = served.setting(asked), asked.get("language", "")
    return asked["file"], Wanted(setting, form, frozenset(granularities or {"segment"}), language, search)


def _number(
    asked: Mapping[str, str], field: str, least: float, most: float, note: str = "", whole: bool = False
) -> float:
    text = asked[field]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or (whole and value % 1):
        kind = "whole number" if whole else "number"
        raise BadRequest(f"{field}: {text!r} must be a {kind} from {least:g} to {most:g}{note}", field)
    return value
