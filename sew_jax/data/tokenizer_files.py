"""The files of Hugging Face's CTC tokenizers: `vocab.json`, {symbol: id}, and what stands beside it.

Where a file departs from transformers' defaults, `tokenizer_config.json` says so; `added_tokens.json` and
`special_tokens_map.json` are those of older versions.
"""

import json
from pathlib import Path
from typing import Any

from sew_jax.console import say
from sew_jax.data.normalize_text import NORMALIZERS
from sew_jax.data.text_files import read_text
from sew_jax.errors import UserError
from sew_jax.files import write_json
from sew_jax.names import split_names
from sew_jax.storage import is_file

VOCABULARY_FILE, _TOKENIZER_FILE = "vocab.json", "tokenizer_config.json"
_ADDED_FILE, _MAP_FILE = "added_tokens.json", "special_tokens_map.json"
_PHONEMES = "Wav2Vec2PhonemeCTCTokenizer"  # of which words are symbols
_BLANKS = ("<pad>", "[PAD]")
_MOST = 1_000_000  # a larger id is a mistake
# our field -> the name in tokenizer_config.json
_TOKENS = {
    "blank_symbol": "pad_token",
    "delimiter": "word_delimiter_token",
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown_symbol": "unk_token",
}


def read_tokenizer(
    path: Path, most: int | None = None, pad_id: int | None = None, language: str = ""
) -> dict[str, Any]:
    """The fields of a `Vocabulary` that a vocab.json and the files beside it describe; `Vocabulary.load` says more.

    Raises:
      UserError: there is no such file, or it is no vocabulary.
    """
    try:
        ids = json.loads(read_text(path))
        tokenizer = _read_beside(path, _TOKENIZER_FILE)
        if nested := ids and all(isinstance(value, dict) for value in ids.values()):
            ids = _of_language(path, ids, language, tokenizer.get("target_lang"))
        elif language and tokenizer.get("target_lang") != language:
            raise ValueError(f"it is that of one language, which no file beside it says is {language!r}")
        named = _read_beside(path, _MAP_FILE)
        # transformers: of older folders the map decides, of newer ones the tokenizer's own file
        tokenizer = named | tokenizer if "added_tokens_decoder" in tokenizer else tokenizer | named
        added = {} if nested else _read_beside(path, _ADDED_FILE) | _added_tokens(tokenizer)
        ids |= {symbol: i for symbol, i in added.items() if symbol not in ids and (most is None or i < most)}
        if not ids or not all(type(i) is int and 0 <= i < _MOST for i in ids.values()):
            raise ValueError("its ids are no whole numbers from 0 on")
        tokens = {ours: _token(tokenizer[theirs]) for ours, theirs in _TOKENS.items() if theirs in tokenizer}
        fields: dict[str, Any] = {
            name: token for name, token in tokens.items() if name in ("bos", "eos", "unknown_symbol")
        }
        fields["delimiter"] = _delimiter(ids, tokens, tokenizer)
        fields["blank_symbol"] = _blank(ids, tokens.get("blank_symbol"), pad_id)
        fields["symbols"], fields["more_names"] = _by_id(path, ids, set(fields.values()))
        normalizer = tokenizer.get("text_normalizer", "none")
        if not all(step in NORMALIZERS for step in split_names(normalizer)):
            raise ValueError(f"its text_normalizer {normalizer!r} is unknown")
        return fields | {"lower_case": bool(tokenizer.get("do_lower_case")), "normalizer": normalizer}
    except FileNotFoundError as error:
        raise UserError(f"vocabulary {path}: no such file; give letters, auto, or a vocab.json") from error
    except OSError as error:
        raise UserError(f"vocabulary {path}: it cannot be read ({error.strerror})") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"vocabulary {path}: not a vocabulary ({error}); it must be JSON of the form {{symbol: id}}"
        ) from error


def write_tokenizer(folder: Path, ids: dict[str, int], fields: dict[str, Any]) -> None:
    """Writes vocab.json and tokenizer_config.json: the inverse of `read_tokenizer`."""
    tokenizer: dict[str, Any] = {theirs: fields[ours] for ours, theirs in _TOKENS.items()}
    if fields["delimiter"] is None:
        tokenizer |= {"tokenizer_class": _PHONEMES, "phone_delimiter_token": " ", "do_phonemize": False}
    else:
        tokenizer |= {"tokenizer_class": "Wav2Vec2CTCTokenizer", "replace_word_delimiter_char": " "}
    tokenizer |= {"do_lower_case": fields["lower_case"]}
    if fields["normalizer"] != "none":
        tokenizer |= {"text_normalizer": fields["normalizer"]}  # ours; transformers passes it over
    write_json(folder / VOCABULARY_FILE, ids)
    write_json(folder / _TOKENIZER_FILE, tokenizer)


def _read_beside(path: Path, name: str) -> dict[str, Any]:
    file = path.with_name(name)
    return json.loads(read_text(file)) if is_file(file) else {}


def _of_language(path: Path, vocabularies: dict[str, dict[str, int]], asked: str, named: str | None) -> dict[str, int]:
    """One of several vocabularies in a file, as MMS has it: that which is asked for, else the only one or the named."""
    names = sorted(vocabularies)
    language = asked or (names[0] if len(names) == 1 else named)
    if language in vocabularies:
        return dict(vocabularies[language])
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise UserError(
        f"vocabulary {path}: it holds the vocabularies of {len(names)} languages ({listed}); name one by "
        f"--config.language, as target_lang in {_TOKENIZER_FILE} beside it, or give one as a file of its own, by "
        "--config.vocabulary"
    )


def _added_tokens(tokenizer: dict[str, Any]) -> dict[str, int]:
    decoder = tokenizer.get("added_tokens_decoder", {})
    return {text: int(i) for i, spelled in decoder.items() if (text := _token(spelled)) is not None}


def _token(spelled: Any) -> str | None:
    """A special token as tokenizer files spell it: text, or an object with the text as `content`."""
    return spelled.get("content") if isinstance(spelled, dict) else spelled


def _delimiter(ids: dict[str, int], tokens: dict[str, Any], tokenizer: dict[str, Any]) -> str | None:
    """What is named, else a bar or a space; None where words are symbols."""
    named = tokens.get("delimiter", "|")
    if named is None or tokenizer.get("tokenizer_class") == _PHONEMES:
        return None
    return next((name for name in (named, "|", " ") if name in ids), None)


def _blank(ids: dict[str, int], named: str | None, pad_id: int | None) -> str:
    """What is named, else the symbol of config.json's `pad_token_id`, else the usual names."""
    if named in ids:
        return named
    of_model = [symbol for symbol, i in ids.items() if i == pad_id]
    usual = [name for name in _BLANKS if name in ids]
    if not of_model and not usual:
        raise ValueError(f"none of its symbols is the blank, {named or ' or '.join(_BLANKS)}")
    return (of_model or usual)[-1]


def _by_id(path: Path, ids: dict[str, int], special: set[str | None]) -> tuple[tuple[str, ...], tuple]:
    """(symbols by id, further names with their ids); an id without a name gets one that is never read."""
    names: dict[int, list[str]] = {}
    for symbol, i in ids.items():
        names.setdefault(i, []).append(symbol)
    symbols, more = [], []
    for i in range(max(names) + 1):
        named = names.get(i, [f"<nameless {i}>"])
        chosen = next((name for name in named if name in special), named[-1])  # transformers writes the last
        symbols.append(chosen)
        others = [name for name in named if name != chosen]
        if others:
            listed = " and ".join(map(repr, others))
            say(f"  ! vocabulary {path}: {listed} and {chosen!r} share id {i}; all are read, {chosen!r} is written")
        more += [(name, i) for name in others]
    return tuple(symbols), tuple(more)
