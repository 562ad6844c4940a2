"""How text is written, in one place for transcripts, references, hypotheses, n-grams and lexica.

Unicode's NFC, without format characters (category Cf: zero-width spaces, byte order marks, soft hyphens, marks of
direction), words one space apart; and what the option `text_normalizer` asks for.
"""

import unicodedata
from collections.abc import Callable

from sew_jax.names import split_names

JOINERS = "\u200c\u200d"  # zero-width non-joiner and joiner: format characters that are spelling in some scripts
_PICTURES = "\ufe0e\ufe0f"  # ask for a character as text, or as a picture
_VIRAMA = 9  # combining class of the signs after which a joiner chooses the form of an Indic letter
_APOSTROPHES = "\u2019\u2018\u00b4\u0060\uff07"  # typed or printed in place of '
_INNER = "'\u00b7\u05f3\u05f4"  # punctuation that is spelling between two letters (Catalan's dot, Hebrew's geresh)


def write_text(text: str, joiners: str | None = None) -> str:
    """NFC without format characters, words one space apart.

    Args:
      joiners: those of JOINERS that are kept; None keeps them where they are spelling: beside a virama, or between
        two Arabic letters.
    """
    if text.isascii():
        return " ".join(text.split())
    kept = [c for i, c in enumerate(text) if not _is_format(c) or _is_kept(text, i, joiners)]
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


def format_characters(text: str, joiners: str | None = None) -> list[str]:
    """The format characters that `write_text` drops, in order."""
    if text.isascii():
        return []
    return [c for i, c in enumerate(text) if _is_format(c) and not _is_kept(text, i, joiners)]


def _is_format(c: str) -> bool:
    return unicodedata.category(c) == "Cf" or c in _PICTURES


def _is_kept(text: str, i: int, joiners: str | None) -> bool:
    if text[i] not in JOINERS or joiners is not None:
        return text[i] in (joiners or "")
    before, after = text[i - 1 : i], text[i + 1 : i + 2]
    if not before or not _is_letter(before):
        return False
    virama = unicodedata.combining(before) == _VIRAMA or (after and unicodedata.combining(after) == _VIRAMA)
    sides = {unicodedata.bidirectional(c) for c in (before, after)} if after else set()
    return bool(virama or ("AL" in sides and sides <= {"AL", "NSM"}))


def _without_punctuation(text: str) -> str:
    """Punctuation and symbols become spaces, but for apostrophes (all written ') and their like between letters."""
    characters = ["'" if c in _APOSTROPHES else c for c in text]
    kept = []
    for i, c in enumerate(characters):
        between = 0 < i < len(characters) - 1 and _is_letter(characters[i - 1]) and _is_letter(characters[i + 1])
        away = unicodedata.category(c)[0] in "PS" and not (c in _INNER and between)
        kept.append(" " if away else c)
    return "".join(kept)


def lower_case(text: str) -> str:
    """Small letters; Turkish I with a dot loses it, as in Turkish, where Python would keep the dot as a mark."""
    return text.replace("\u0130", "i").lower()


def _is_letter(c: str) -> bool:
    return unicodedata.category(c)[0] in "LM"


_STEPS: dict[str, Callable[[str], str]] = {
    "none": str,
    "upper": str.upper,
    "lower": lower_case,
    "basic": _without_punctuation,
}
NORMALIZERS = tuple(_STEPS)


def normalize_text(text: str, normalizer: str, joiners: str | None = None) -> str:
    """Text as `write_text` has it, after the steps that a `text_normalizer` names, joined by commas: `lower,basic`.

    Steps: `none`, `upper`, `lower`, and `basic` (punctuation away). Raises KeyError on another.
    """
    text = write_text(text, joiners)
    for step in split_names(normalizer):
        text = _STEPS[step](text)
    return write_text(text, joiners)


def spell_characters(characters: str) -> str:
    """Characters by code point and name, for messages about what cannot be seen: `U+200B zero width space`."""
    names = (unicodedata.name(c, "unnamed").lower() for c in characters)
    return ", ".join(f"U+{ord(c):04X} {name}" for c, name in zip(characters, names, strict=True))


def show(symbol: str) -> str:
    """A symbol for the screen: in quotes, and by its code point where nothing of it can be seen alone."""
    seen = all(unicodedata.category(c)[0] not in "CZM" for c in symbol)
    return repr(symbol) if seen else " ".join(f"U+{ord(c):04X}" for c in symbol)
