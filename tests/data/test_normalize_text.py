"""Text is written one way, whatever form it came in."""

# ruff: noqa: RUF001 (letters of many scripts)

import random
import unicodedata

import pytest

from sew_jax.checks.modes import TEXT_NORMALIZERS
from sew_jax.data.normalize_text import NORMALIZERS, format_characters, normalize_text, write_text

VIETNAMESE = "tôi là sinh viên được rồi cảm ơn"
PERSIAN = "می\u200cخواهم"  # a non-joiner between two Arabic letters is spelling
SINHALA = "ශ්\u200dරී"  # and so is a joiner after a virama


@pytest.mark.parametrize("text", [VIETNAMESE, "Ångström", "한국어", "ड़क क्या", PERSIAN, SINHALA, "plain TEXT"])
def test_all_forms_of_unicode_become_one(text):
    forms = {write_text(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
    assert len(forms) == 1
    assert unicodedata.is_normalized("NFC", forms.pop())


def test_format_characters_are_dropped_and_told():
    marks = "\u200b\ufeff\u00ad\u200e\u202b\u202c\u2066\u2069\u2060"
    spoiled = "".join(c + mark for c, mark in zip("HELLOWORL", marks, strict=True)) + "D"
    assert write_text(spoiled) == "HELLOWORLD" and format_characters(spoiled) == list(marks)
    # one between a letter and its accent does not keep them apart
    assert write_text("e\u200b\u0301") == "é"
    assert not format_characters("HELLO") and not format_characters(VIETNAMESE)


def test_joiners_stay_where_they_are_spelling_or_symbols():
    assert write_text(PERSIAN) == PERSIAN and write_text(SINHALA) == SINHALA
    assert write_text(PERSIAN, joiners="") == PERSIAN.replace("\u200c", "")
    assert write_text("A\u200dB\u200c") == "AB" and write_text("A\u200dB\u200c", joiners="\u200d") == "A\u200dB"


def test_any_white_space_is_one_space():
    assert write_text(" 10\u00a0000\t\u2009A\u3000B\n") == "10 000 A B"


@pytest.mark.parametrize(
    ("text", "normalizer", "expected"),
    [
        ("Don't — stop!", "none", "Don't — stop!"),
        ("Don't — stop!", "", "Don't — stop!"),
        ("Don’t — “stop”, he said...", "basic", "Don't stop he said"),
        ("'tis the dogs' well-known 'bone'", "basic", "tis the dogs well known bone"),
        ("Straße", "upper", "STRASSE"),
        ("ÀÉ İ", "lower", "àé i"),
        ("❤\ufe0f ja\ufe0e", "basic", "ja"),
        ("Hello, World!", "lower,basic", "hello world"),
        ("Hello, World!", "basic, upper", "HELLO WORLD"),
        ("col·lecció 100% $5", "basic", "col·lecció 100 5"),
        ("... - ?! ¿ 、", "basic", ""),
        ("क्या हुआ?", "basic", "क्या हुआ"),
    ],
)
def test_normalizers(text, normalizer, expected):
    assert normalize_text(text, normalizer) == expected


@pytest.mark.parametrize("normalizer", ["none", "basic", "lower,basic", "upper,basic"])
def test_what_is_normalized_stays_as_it_is(normalizer):
    draw = random.Random(0)
    pieces = [*"aÉßİ'’-.,ễ\u0301\u0323\u200c\u200d\u200b\u094dकمی ", "\u00a0"]
    for _ in range(500):
        once = normalize_text("".join(draw.choices(pieces, k=12)), normalizer)
        assert normalize_text(once, normalizer) == once and once == " ".join(once.split())


def test_the_config_knows_all_of_them():
    assert NORMALIZERS == TEXT_NORMALIZERS
