"""Transcripts to symbols and back."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sew_jax.buckets import as_path
from sew_jax.data.normalize_text import JOINERS, lower_case, normalize_text, write_text
from sew_jax.data.tokenizer_files import VOCABULARY_FILE, read_tokenizer, write_tokenizer
from sew_jax.errors import UserError

__all__ = ["LETTERS", "VOCABULARY_FILE", "Vocabulary", "open_vocabulary"]

_NAMELESS = re.compile(r"<nameless \d+>")
_SPECIAL = {"<pad>", "<s>", "</s>", "<unk>", "[PAD]", "[UNK]"}  # never said, whatever a tokenizer's files name

# fairseq's order with Hugging Face's names: fairseq calls the blank `<s>` and its neighbour `<pad>`, at the same ids.
# Then letters by frequency as in `dict.ltr.txt`
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """CTC symbols, of one character or several; the delimiter ends each word (the last one too, as fairseq writes it).

    Files and defaults are those of Hugging Face's CTC tokenizers; see `tokenizer_files`.

    Attributes:
      symbols: by id.
      delimiter: None where there is none: words are symbols then (phonemes, written with spaces between them).
      lower_case: text is written in small letters, whatever the case of the symbols (`do_lower_case`).
      normalizer: what is done to text before it is spelt, and to what it is compared with; see `normalize_text`.
      more_names: further names of symbols, which are read and never written, with their ids.
    """

    symbols: tuple[str, ...]
    blank_symbol: str = "<pad>"
    delimiter: str | None = "|"
    bos: str | None = "<s>"  # these three never stand in a transcript
    eos: str | None = "</s>"
    unknown_symbol: str | None = "<unk>"
    lower_case: bool = False
    normalizer: str = "none"
    more_names: tuple[tuple[str, int], ...] = ()

    _ids: dict[str, int] = dataclasses.field(init=False, repr=False, compare=False)
    _silent: frozenset[int] = dataclasses.field(init=False, repr=False, compare=False)
    _ends: frozenset[int] = dataclasses.field(init=False, repr=False, compare=False)
    _spellings: dict[str, int] = dataclasses.field(init=False, repr=False, compare=False)
    _pieces: re.Pattern[str] = dataclasses.field(init=False, repr=False, compare=False)
    _joiners: str = dataclasses.field(init=False, repr=False, compare=False)
    _capitals: bool = dataclasses.field(init=False, repr=False, compare=False)
    _apart: bool = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        ids = {symbol: i for i, symbol in enumerate(self.symbols)} | dict(self.more_names)
        for name in (self.blank_symbol, self.delimiter):
            if name is not None and name not in ids:
                raise UserError(f"vocabulary: it has no {name!r}, which must be its blank or its word delimiter")
        special = _SPECIAL | {self.blank_symbol, self.bos, self.eos, self.unknown_symbol}
        silent = frozenset(i for symbol, i in ids.items() if symbol in special or _NAMELESS.fullmatch(symbol))
        ends = frozenset(i for symbol, i in ids.items() if symbol == self.delimiter or symbol.isspace()) - silent
        spellings = {symbol: i for symbol, i in ids.items() if i not in silent | ends}
        for form in ("NFC", "NFD"):  # a symbol is found by either form of it; as the vocabulary writes it, first
            for symbol, i in list(spellings.items()):
                spellings.setdefault(unicodedata.normalize(form, symbol), i)
        several = sorted((s for s in spellings if len(s) > 1), key=len, reverse=True)  # the longest is tried first
        own = {
            "_ids": ids,
            "_silent": silent,
            "_ends": ends,
            "_spellings": spellings,
            "_pieces": re.compile("|".join([*map(re.escape, several), "."]), re.DOTALL),
            "_joiners": "".join(joiner for joiner in JOINERS if any(joiner in symbol for symbol in spellings)),
            "_capitals": all(symbol == symbol.upper() for symbol in spellings),
            # without a delimiter, and each symbol a character: each character is a word then
            "_apart": self.delimiter is None and not several,
        }
        for name, value in own.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def blank(self) -> int:
        """Id of the CTC blank."""
        return self._ids[self.blank_symbol]

    @property
    def word_end(self) -> int | None:
        """Id of the delimiter; None where there is none."""
        return None if self.delimiter is None else self._ids[self.delimiter]

    @property
    def joiners(self) -> str:
        """Zero-width joiners that are symbols, or parts of them."""
        return self._joiners

    def is_word_end(self, symbol: int) -> bool:
        """Whether an id stands between words: the delimiter, or white space."""
        return symbol in self._ends

    def is_silent(self, symbol: int) -> bool:
        """Whether an id stands for nothing that is said: the blank, and what never stands in a transcript."""
        return symbol in self._silent

    def id_of(self, name: str) -> int | None:
        """The id of a symbol by its name, in either form of Unicode; None where there is none."""
        return self._ids.get(name, self._spellings.get(name))

    def padded(self, symbols: int) -> "Vocabulary":
        """With nameless symbols up to a count, for a head that is wider than its vocabulary."""
        names = tuple(f"<nameless {i}>" for i in range(len(self), symbols))
        return dataclasses.replace(self, symbols=self.symbols + names)

    def with_normalizer(self, normalizer: str) -> "Vocabulary":
        """The same symbols; an empty `normalizer` leaves that of the vocabulary."""
        return dataclasses.replace(self, normalizer=normalizer or self.normalizer)

    def write(self, text: str) -> str:
        """Text as this vocabulary's transcripts are written, but for the normaliser."""
        text = write_text(text, self._joiners)
        return lower_case(text) if self.lower_case else text

    def normalize(self, text: str) -> str:
        """What is spelt of a text, and what errors are counted on, of references and hypotheses alike."""
        text = self.write(normalize_text(text, self.normalizer, self._joiners))
        return " ".join("".join(text.split())) if self._apart else text

    def unknown(self, text: str) -> set[str]:
        """What of `text` has no symbol: characters, or words where words are symbols."""
        words = self.normalize(text).split()
        if self.delimiter is None:
            return {word for word in words if self._cased(word) not in self._spellings}
        return {piece for word in words for piece in self._spelt(word) if piece not in self._spellings}

    def encode(self, text: str) -> list[int]:
        """Symbol ids of a transcript; words are separated by white space. Raises KeyError on an unknown character."""
        words = self.normalize(text).split()
        if self.delimiter is None:
            return [self._spellings[self._cased(word)] for word in words]
        end = self._ids[self.delimiter]
        return [i for word in words for i in (*(self._spellings[piece] for piece in self._spelt(word)), end)]

    def decode(self, ids: Iterable[int]) -> str:
        """The transcript of symbol ids, special symbols left out."""
        said = [i for i in ids if i not in self._silent]
        if self.delimiter is None:
            return self.normalize(" ".join(self.symbols[i] for i in said))
        return self.normalize("".join(" " if i in self._ends else self.symbols[i] for i in said))

    def _cased(self, word: str) -> str:
        """The word in the case of the symbols, where transcripts are in small letters."""
        return (word.upper() if self._capitals else word.lower()) if self.lower_case else word

    def _spelt(self, word: str) -> list[str]:
        """Names of symbols that spell a word, the longest first; what has no symbol, by characters."""
        word = self._cased(word)
        composed = self._pieces.findall(word)
        if all(piece in self._spellings for piece in composed):
            return composed
        decomposed = self._pieces.findall(unicodedata.normalize("NFD", word))
        if all(piece in self._spellings for piece in decomposed):
            return decomposed
        pieces = []
        for piece in composed:
            parts = self._pieces.findall(unicodedata.normalize("NFD", piece))
            known = piece not in self._spellings and all(part in self._spellings for part in parts)
            pieces += parts if known else [piece]
        return pieces

    def save(self, folder: Path) -> None:
        """Writes the two files into a folder; a tokenizer of Hugging Face's reads them too."""
        ids = dict(self.more_names) | {
            symbol: i for i, symbol in enumerate(self.symbols)
        }  # of two, the last is written
        write_tokenizer(folder, ids, {name: getattr(self, name) for name in _SAVED})

    def recorded(self) -> dict[str, Any]:
        """As JSON; `of_record` makes it again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Vocabulary":
        """The inverse of `recorded`, lists of JSON for tuples."""
        more_names = tuple((name, i) for name, i in record["more_names"])
        return cls(**record | {"symbols": tuple(record["symbols"]), "more_names": more_names})

    @classmethod
    def load(cls, path: Path, most: int | None = None, pad_id: int | None = None, language: str = "") -> "Vocabulary":
        """Reads a vocab.json, with the tokenizer's other files beside it where there are any.

        Args:
          most: added tokens beyond so many symbols are ignored, as a head of that size never emits them.
          pad_id: id of the blank, where the tokenizer's files do not name it.
          language: which of several vocabularies; empty: that which the tokenizer's files name.

        Raises:
          UserError: there is no such file, or it is no vocabulary.
        """
        return cls(**read_tokenizer(as_path(path), most, pad_id, language))


_SAVED = ("blank_symbol", "delimiter", "bos", "eos", "unknown_symbol", "lower_case", "normalizer")


def open_vocabulary(name: str, normalizer: str = "") -> Vocabulary:
    """`letters` (English capitals and apostrophe), or the path of a vocab.json.

    Args:
      normalizer: empty is that of the file, or none.
    """
    if name == "letters":
        return Vocabulary(LETTERS).with_normalizer(normalizer)
    return Vocabulary.load(Path(name)).with_normalizer(normalizer)


def characters_vocabulary(characters: Iterable[str], normalizer: str = "") -> Vocabulary:
    """Each character a symbol, in Unicode's order; the bar that ends words is not one of a text."""
    said = set(characters) - {" ", *LETTERS[:5]}
    return Vocabulary((*LETTERS[:5], *sorted(said))).with_normalizer(normalizer)
