"""Transcripts to symbols and back."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from sew_jax.errors import UserError

# fairseq's dictionary order (`<s>` is the CTC blank), then letters by frequency as in `dict.ltr.txt`
LETTERS = ("<s>", "<pad>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
_SPECIAL, _SPACE = 4, "|"


class Vocabulary:
    """Characters as CTC symbols; symbol 0 is the blank, `|` ends each word (the last one too, as fairseq writes it)."""

    def __init__(self, symbols: Sequence[str]):
        self.symbols = tuple(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other) -> bool:
        return isinstance(other, Vocabulary) and self.symbols == other.symbols

    __hash__ = None

    def unknown(self, text: str) -> set[str]:
        """Characters of `text` that have no symbol."""
        return {c for c in text if c != " " and c not in self._ids} | ({_SPACE} & set(text))

    def encode(self, text: str) -> list[int]:
        """Symbol ids of a transcript; words are separated by white space. Raises KeyError on an unknown character."""
        return [self._ids[c] for word in text.split() for c in word + _SPACE]

    def decode(self, ids: Iterable[int]) -> str:
        """The transcript of symbol ids, special symbols left out."""
        text = "".join(self.symbols[i] for i in ids if i >= _SPECIAL)
        return " ".join(text.replace(_SPACE, " ").split())

    def save(self, path: Path) -> None:
        """Writes {symbol: id} as JSON (the form of a Hugging Face `vocab.json`)."""
        path.write_text(json.dumps(self._ids, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
          UserError: there is no such file, or it is no vocabulary.
        """
        try:
            ids = json.loads(Path(path).read_text(encoding="utf-8"))
            if sorted(ids.values()) != list(range(len(ids))):
                raise ValueError("its ids are not 0, 1, 2, ...")
            return cls(sorted(ids, key=ids.get))
        except FileNotFoundError as error:
            raise UserError(f"vocabulary {path}: no such file; give letters, auto, or a vocab.json") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(
                f"vocabulary {path}: not a vocabulary ({error}); it must be JSON of the form {{symbol: id}}"
            ) from error


def open_vocabulary(name: str, texts: Iterable[str]) -> Vocabulary:
    """`letters` (English capitals and apostrophe), `auto` (the characters of `texts`), or the path of a vocab.json."""
    if name == "letters":
        return Vocabulary(LETTERS)
    if name == "auto":
        return Vocabulary((*LETTERS[: _SPECIAL + 1], *sorted({c for text in texts for c in text if not c.isspace()})))
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
            f"{source.name}: the transcript of {name}{more} has {characters}, which the vocabulary lacks; normalise the "
            "text (letters are capitals and apostrophe), or fine-tune with --config.vocabulary=auto"
        )
