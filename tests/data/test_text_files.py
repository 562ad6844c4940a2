"""One reader of text: each encoding and each end of line gives the same lines, for every kind of file."""

import codecs
import json

import numpy as np
import pytest
import soundfile

from sew_jax.checkpoints.fairseq import read_dictionary
from sew_jax.data import text_files
from sew_jax.data.sources import open_source
from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding.build_lm import _lines
from sew_jax.decoding.lexicon import _read_file

LINES = ["ÄÖ one", "", "two\u2028three \u0085", "vier 五"]
ENCODINGS = {
    "utf-8": (b"", "utf-8"),
    "utf-8 with a mark": (codecs.BOM_UTF8, "utf-8"),
    "utf-16 le": (codecs.BOM_UTF16_LE, "utf-16-le"),
    "utf-16 be": (codecs.BOM_UTF16_BE, "utf-16-be"),
}


@pytest.fixture(params=[(e, end) for e in ENCODINGS for end in ("\n", "\r\n", "\r")], ids=lambda p: f"{p[0]} {p[1]!r}")
def encoded(request):
    """Writes lines in one of the ways."""
    (mark, encoding), end = ENCODINGS[request.param[0]], request.param[1]
    return lambda lines: mark + "".join(f"{line}{end}" for line in lines).encode(encoding)


def test_lines_are_the_same_in_every_encoding(encoded, tmp_path):
    content = encoded(LINES)
    assert text_files.decode_lines(content) == [*LINES, ""]
    (tmp_path / "a").write_bytes(content)
    assert text_files.read_text(tmp_path / "a") == "\n".join([*LINES, ""])
    with text_files.open_lines(tmp_path / "a") as lines:
        assert [line.removesuffix("\n") for line in lines] == LINES


def test_every_file_of_text_is_read_so(encoded, tmp_path):
    """Manifests, lists of transcripts, transcripts beside audio, lexica, n-gram text, dictionaries."""

    def write(name, lines):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(lines))
        return path

    def texts(data):
        source, problems = open_source(str(data), "", min_samples=1, need_text=True, max_bad=0)
        assert not problems
        return [source.text(i) for i in range(len(source))]

    for folder in ("list", "beside", "tabs"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            soundfile.write(tmp_path / folder / f"{name}.wav", np.zeros(1600), 16_000)
    rows = [json.dumps({"audio": f"list/{name}.wav", "text": "Ä B"}, ensure_ascii=False) for name in "ab"]
    assert texts(write("list.jsonl", rows)) == ["Ä B"] * 2
    write("list/x.trans.txt", ["a\tÄ  B", " b   Ä \t C"])
    assert texts(tmp_path / "list") == ["Ä B", "Ä C"]
    for name in ("a.txt", "b.TXT"):
        write(f"beside/{name}", ["Ä", "B"])
    assert texts(tmp_path / "beside") == ["Ä B"] * 2
    vocabulary = Vocabulary(LETTERS)
    assert [word for word, _ in _read_file(vocabulary, str(write("lexicon", ["CAT\tC A T |", "DOG"]))).entries] == [
        "CAT",
        "DOG",
    ]
    assert [line.strip() for line in _lines(str(write("text", ["ONE TWO", "", "THREE"])))] == ["ONE TWO", "THREE"]
    assert len(read_dictionary(write("dict", [f"{c} 1" for c in LETTERS[4:]]), len(LETTERS))) == len(LETTERS)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("GRÜSSE".encode("latin-1"), "is not UTF-8, or UTF-16 with a byte order mark"),
        ("HELLO".encode("utf-16-le"), "zero bytes"),
        (codecs.BOM_UTF32_LE + "A".encode("utf-32-le"), "UTF-32"),
        (codecs.BOM_UTF16_LE + b"A", "is not UTF-8, or UTF-16"),
    ],
)
def test_what_is_no_text_is_named(content, reason, tmp_path):
    with pytest.raises(text_files.TextError, match=reason):
        text_files.decode(content)
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(1600), 16_000)
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_text("GOOD")
    source, problems = open_source(str(tmp_path), "", min_samples=1, need_text=True, max_bad=1)
    assert len(source) == 1 and problems[0].id == "a" and reason in problems[0].reason


def test_a_bad_line_of_a_list_costs_one_utterance(tmp_path):
    for name in ("a", "b", "c"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(1600), 16_000)
    (tmp_path / "x.trans.txt").write_bytes(b"a ONE\nb GR\xdcSSE\nc THREE\n")
    source, problems = open_source(str(tmp_path), "", min_samples=1, need_text=True, max_bad=1)
    assert len(source) == 2 and [(p.id, p.reason) for p in problems] == [("b", "its transcript is not UTF-8")]


def test_ids_are_parted_by_any_white_space():
    for line in ("a b  c", "a\tb  c", "  a \t b  c\u3000", "a\u3000b  c"):
        assert text_files.split_id(line) == ("a", "b  c")
    assert text_files.split_id("a") == ("a", "") and text_files.split_id(" ") == ("", "")
