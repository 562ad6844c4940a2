"""Transcripts to symbols and back."""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sew_jax.errors import UserError
from sew_jax.files import write_json

VOCABULARY_FILE, _TOKENIZER_FILE = "vocab.json", "tokenizer_config.json"
_ADDED_FILE, _MAP_FILE = "added_tokens.json", "special_tokens_map.json"
_NAMELESS = re.compile(r"<nameless \d+>")
# our field -> the name in Hugging Face's tokenizer_config.json
_TOKENS = dict(
    blank_symbol="pad_token",
    delimiter="word_delimiter_token",
    bos="bos_token",
    eos="eos_token",
    unknown_symbol="unk_token",
)

# fairseq's order with Hugging Face's names: fairseq calls the blank `<s>` and its neighbour `<pad>`, at the same ids.
# Then letters by frequency as in `dict.ltr.txt`
LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Characters as CTC symbols; the delimiter ends each word (the last one too, as fairseq writes it).

    Files and defaults are those of Hugging Face's CTC tokenizers: `vocab.json`, {symbol: id}, and where it departs from
    the defaults `tokenizer_config.json` beside it.
    """

    symbols: tuple[str, ...]
    blank_symbol: str = "<pad>"
    delimiter: str = "|"
    bos: str | None = "<s>"  # these three never stand in a transcript
    eos: str | None = "</s>"
    unknown_symbol: str | None = "<unk>"

    _ids: dict[str, int] = dataclasses.field(init=False, repr=False, compare=False)
    _silent: set[int] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "_ids", {symbol: i for i, symbol in enumerate(self.symbols)})
        for name in (self.blank_symbol, self.delimiter):
            if name not in self._ids:
                raise UserError(f"vocabulary: it has no {name!r}, which must be its blank or its word delimiter")
        special = {self.blank_symbol, self.bos, self.eos, self.unknown_symbol}
        silent = {i for symbol, i in self._ids.items() if symbol in special or _NAMELESS.fullmatch(symbol)}
        object.__setattr__(self, "_silent", silent)

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def blank(self) -> int:
        """Id of the CTC blank."""
        return self._ids[self.blank_symbol]

    @property
    def word_end(self) -> int:
        """Id of the delimiter."""
        return self._ids[self.delimiter]

    def is_silent(self, symbol: int) -> bool:
        """Whether an id stands for nothing that is said: the blank, and what never stands in a transcript."""
        return symbol in self._silent

    def padded(self, symbols: int) -> "Vocabulary":
        """With nameless symbols up to a count, for a head that is wider than its vocabulary."""
        names = tuple(f"<nameless {i}>" for i in range(len(self), symbols))
        return dataclasses.replace(self, symbols=self.symbols + names)

    def unknown(self, text: str) -> set[str]:
        """Characters of `text` that have no symbol."""
        return {c for c in text if c != " " and c not in self._ids} | ({self.delimiter} & set(text))

    def encode(self, text: str) -> list[int]:
        """Symbol ids of a transcript; words are separated by white space. Raises KeyError on an unknown character."""
        return [self._ids[c] for word in text.split() for c in word + self.delimiter]

    def decode(self, ids: Iterable[int]) -> str:
        """The transcript of symbol ids, special symbols left out."""
        text = "".join(self.symbols[i] for i in ids if not self.is_silent(i))
        return " ".join(text.replace(self.delimiter, " ").split())

    def save(self, folder: Path) -> None:
        """Writes the two files into a folder; a tokenizer of Hugging Face's reads them too."""
        tokenizer = {theirs: getattr(self, ours) for ours, theirs in _TOKENS.items()}
        tokenizer |= {"tokenizer_class": "Wav2Vec2CTCTokenizer"}
        tokenizer |= {"do_lower_case": False, "replace_word_delimiter_char": " "}
        write_json(folder / VOCABULARY_FILE, self._ids)
        write_json(folder / _TOKENIZER_FILE, tokenizer)

    @classmethod
    def load(cls, path: Path, most: int | None = None) -> "Vocabulary":
        """Reads a vocab.json, with the tokenizer's other files beside it where there are any.

        Args:
          most: added tokens beyond so many symbols are ignored, as a head of that size never emits them.

        Raises:
          UserError: there is no such file, or it is no vocabulary.
        """
        path = Path(path)
        beside = path.with_name(_TOKENIZER_FILE)
        try:
            ids = json.loads(path.read_text(encoding="utf-8"))
            if path.with_name(_ADDED_FILE).is_file():
                added = json.loads(path.with_name(_ADDED_FILE).read_text(encoding="utf-8"))
                ids |= {symbol: i for symbol, i in added.items() if most is None or i < most}
            if sorted(ids.values()) != list(range(len(ids))):
                raise ValueError("its ids are not 0, 1, 2, ...")
            tokenizer = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
            if path.with_name(_MAP_FILE).is_file() and "added_tokens_decoder" not in tokenizer:
                tokenizer |= json.loads(path.with_name(_MAP_FILE).read_text(encoding="utf-8"))
            tokens = {ours: _token(tokenizer[theirs]) for ours, theirs in _TOKENS.items() if theirs in tokenizer}
            return cls(tuple(sorted(ids, key=ids.get)), **tokens)
        except FileNotFoundError as error:
            raise UserError(f"vocabulary {path}: no such file; give letters, auto, or a vocab.json") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"vocabulary {path}: not a vocabulary ({error}); it must be JSON of the form {{symbol: id}}"
            ) from error


def _token(spelled: Any) -> str | None:
    """A special token as tokenizer files spell it: text, or an object with the text as `content`."""
    return spelled.get("content") if isinstance(spelled, dict) else spelled


def open_vocabulary(name: str, texts: Iterable[str]) -> Vocabulary:
    """`letters` (English capitals and apostrophe), `auto` (the characters of `texts`), or the path of a vocab.json."""
    if name == "letters":
        return Vocabulary(LETTERS)
    if name == "auto":
        return Vocabulary((*LETTERS[:5], *sorted({c for text in texts for c in text if not c.isspace()})))
    return Vocabulary.load(Path(name))


def check_texts(vocabulary: Vocabulary, source) -> None:
    """Checks every transcript of a source.

    Raises:
      UserError: one has a character without a symbol; the message names the first and counts the rest.
    """
    bad = [(source.id(i), unknown) for i in range(len(source)) if (unknown := vocabulary.unknown(source.text(i)))]
    if bad:
        name, unknown = bad[0]
        characters = " ".join(repr(c) for c in sorted(unknown))
        more = f" and {len(bad) - 1} more utterances" if len(bad) > 1 else ""
        raise UserError(
            f"{source.name}: the transcript of {name}{more} has {characters}, "
            "which the vocabulary lacks; normalise the "
            "text (letters are capitals and apostrophe), or fine-tune with --config.vocabulary=auto"
        )
