"""What a request may ask for, and what is said of one that may not be: errors in OpenAI's form."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sew_jax.compression import Compression
from sew_jax.errors import UserError
from sew_jax.evaluation.budget import chosen_setting

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
_GRANULARITIES = ("segment", "word")
FIELDS = (
    "file",
    "model",
    "setting",
    "budget",
    "response_format",
    "timestamp_granularities[]",
    "language",
    "temperature",
)
_NAME = re.compile(r"[^/\\\0]*")


class BadRequest(Exception):
    """A request that cannot be answered, with the status, and the field and the code that OpenAI's clients look at."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.status, self.headers = status, {}
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclasses.dataclass(frozen=True)
class Served:
    """What there is to ask for.

    Attributes:
      name: of the model; as a request's model it means the first setting.
      settings: compiled ones; the first is computed where none is asked for.
      tradeoff: of what a budget picks from; empty: the model's own.
      max_bytes, max_seconds: of a request.
    """

    name: str
    settings: Sequence[Compression]
    tradeoff: str
    max_bytes: int
    max_seconds: float

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
                "" if key == "budget" else asked[key], asked.get("budget", ""), self.tradeoff, init_from=self.name
            )
        except UserError as error:
            raise BadRequest(str(error), key) from error
        if chosen not in self.settings:
            raise BadRequest(f"setting {chosen.name!r} is not served; choose one of {', '.join(names)}", key)
        return chosen


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What a request asks for, besides its audio."""

    setting: Compression
    form: str
    granularities: frozenset[str]
    language: str


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
    _check_temperature(asked.get("temperature", "0"))
    language = asked.get("language", "")
    return asked["file"], Wanted(served.setting(asked), form, frozenset(granularities or {"segment"}), language)


def _check_temperature(text: str) -> None:
    """Clients send it; search has none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise BadRequest(f"temperature: {text!r} must be a number from 0 to 1; it changes nothing here", "temperature")
