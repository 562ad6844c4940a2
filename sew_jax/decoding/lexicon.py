"""Words that may be said and the symbols that spell them: a language model's own vocabulary, or a file's."""

import gzip
import mmap
import re
import struct
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

from sew_jax.data.text_files import read_text
from sew_jax.data.vocabulary import Vocabulary
from sew_jax.errors import UserError
from sew_jax.storage import patient, raise_if_away

_NO_WORDS = {"<s>", "</s>", "<unk>", "<UNK>"}
_BINARY = b"mmap lm http://kheafield.com/code format version"  # how a KenLM binary begins
# of its format 5, after 88 bytes of known values: whether the words stand at its end, and how many there are
_BINARY_HEADER, _BINARY_OFFSET = struct.Struct("=12x?7xQ"), 88
_SPACES = " \t\r\n\v\f\0"  # between words, for KenLM; a no-break space, say, is part of one
_TOO_FEW = 0.1  # of the words: a vocabulary that spells no more of them is another model's


class Lexicon(NamedTuple):
    """What a beam search may write.

    Attributes:
      entries: (word, ids of its symbols, of which the last is the delimiter); a word may stand there with several
        spellings. None at all: any string of symbols.
      left_out: words with characters that the vocabulary lacks, or without any that it spells.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...] = ()
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.entries:
            return "none, any string of symbols"
        text = f"{len(dict(self.entries)):,} words"
        if self.left_out:
            text += f"; {len(self.left_out):,} with characters that the vocabulary lacks are left out"
            text += f" (first: {self.left_out[0]})"
        return text


def open_lexicon(vocabulary: Vocabulary, lm: str, lexicon: str, hot_words: Sequence[str] = ()) -> Lexicon:
    """The lexicon of a language model and a file, of which either may be empty.

    Without a file it is the model's own vocabulary; where that is one of symbols (it holds the delimiter, or the
    vocabulary has none), or where there is no model either, any string is allowed.

    Args:
      lm: path of an ARPA (also gzipped) or a KenLM binary.
      lexicon: path of a text. A line with a tab, or with the delimiter at its end, is a word and its spelling (`WORD
        W O R D |`, as fairseq and wav2letter write it); any other is words. Words are parted by ASCII's white space:
        a no-break space is part of its word.
      hot_words: words and phrases whose words may be said as well.

    Raises:
      UserError: a file cannot be read, or spells (nearly) nothing with this vocabulary; or not every hot word.
    """
    spell_phrases(vocabulary, hot_words)  # what is wrong with them is said before a long file is read
    return with_words(vocabulary, _open(vocabulary, lm, lexicon), hot_words)


def with_words(vocabulary: Vocabulary, lexicon: Lexicon, phrases: Sequence[str]) -> Lexicon:
    """A lexicon and those words of phrases that it lacks; where any string may be said, the same.

    Raises:
      UserError: one of them has no word, or characters that the vocabulary lacks.
    """
    spelt = spell_phrases(vocabulary, phrases)
    if not lexicon.entries:
        return lexicon
    known = dict(lexicon.entries)
    new = (word for phrase in spelt for word in words_of_phrase(vocabulary, phrase, known) if word not in known)
    return lexicon._replace(entries=(*lexicon.entries, *_spell(vocabulary, new).entries))


def words_of_phrase(vocabulary: Vocabulary, phrase: str, known: Container[str]) -> tuple[str, ...]:
    """Words of a hot phrase by the names of `known`, a lexicon's words; what it lacks is written as it is spelt."""
    return tuple(
        name for word in phrase.split() for name in ([word] if word in known else vocabulary.normalize(word).split())
    )


def spell_phrases(vocabulary: Vocabulary, phrases: Sequence[str]) -> dict[str, list[int]]:
    """Phrases, words apart by one space each, and their symbols, a delimiter after each word.

    Raises:
      UserError: one of them has no word, or characters that the vocabulary lacks.
    """
    spelt = {}
    for phrase in phrases:
        name = " ".join(phrase.split())
        if unknown := vocabulary.unknown(name):
            case = next((c for c in (name.upper(), name.lower()) if c != name and not vocabulary.unknown(c)), "")
            advice = f"write it {case!r}" if case else "leave it out"
            raise UserError(f"hot_words: {name!r} has {min(unknown)!r}, which the vocabulary lacks; {advice}")
        if not (symbols := vocabulary.encode(name)):
            raise UserError(f"hot_words: {phrase!r} has no word; leave it out")
        spelt[name] = symbols
    return spelt


def _open(vocabulary: Vocabulary, lm: str, lexicon: str) -> Lexicon:
    known = lm_words(lm) if lm else ()
    if lexicon:
        if vocabulary.delimiter is None:
            raise UserError(f"lexicon: {lexicon} is one of words, and this vocabulary has no delimiter to end them by")
        read = _read_file(vocabulary, lexicon)
        _check(vocabulary, read, f"lexicon: {lexicon}")
        if known and not dict(read.entries).keys() & set(known):
            raise UserError(
                f"lexicon: {lexicon} has no word of {lm} (such as {known[0]!r}); both must be written alike, "
                "in the same case"
            )
        return read
    if known is None:
        raise UserError(f"lm: {lm} holds no words, only their hashes; name a list of them as well, by lexicon")
    if not known or vocabulary.delimiter is None or symbol_labels(vocabulary)[vocabulary.word_end] in known:
        return Lexicon()
    spelled = _spell(vocabulary, known)
    _check(vocabulary, spelled, f"lm: {lm}")
    return spelled


def symbol_labels(vocabulary: Vocabulary) -> list[str]:
    """What an n-gram of symbols calls each: its name, or a bar where that is white space, which cannot be a word."""
    return ["|" if symbol.isspace() else symbol for symbol in vocabulary.symbols]


@patient
def lm_words(path: str) -> tuple[str, ...] | None:
    """The vocabulary of an ARPA or a KenLM binary without special words; None for a binary that was built without it.

    Raises:
      UserError: the file cannot be read, or is neither.
    """
    try:
        with open(path, "rb") as file:
            words = _binary_words(file) if file.read(len(_BINARY)) == _BINARY else _arpa_words(path)
            return None if words is None else tuple(word for word in words if word not in _NO_WORDS)
    except OSError as error:  # also of gzip
        raise_if_away(error)
        raise UserError(f"lm: {path} cannot be read ({error.strerror or error})") from error
    except (EOFError, ValueError, zlib.error) as error:  # a damaged gzip, bytes that are no text
        raise not_a_model(path, "") from error


def not_a_model(path: str, why: str) -> UserError:
    """What is said of a file that is no language model."""
    return UserError(
        f"lm: {path} is no n-gram{why and f' ({why})'}; it must be an ARPA, also gzipped, or a KenLM binary"
    )


def _arpa_words(path: str) -> list[str]:
    words, inside = [], False
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            line = line.strip(_SPACES)
            if not inside and number > 100:  # its header is a few lines
                break
            if inside and (not line or line.startswith("\\")):
                break
            if inside:
                words.append(fields[1] if len(fields := _fields(line)) > 1 else "")
            inside = inside or line == "\\1-grams:"
    if not all(words) or not words:
        raise not_a_model(path, "it has no \\1-grams:" if not words else "a 1-gram without a word")
    return words


def _binary_words(file) -> list[str] | None:
    """They end the file, each ended by a zero byte, and <unk> is always the first."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if len(data) < _BINARY_OFFSET + _BINARY_HEADER.size:
            raise ValueError
        has_words, count = _BINARY_HEADER.unpack_from(data, _BINARY_OFFSET)
        if not has_words:
            return None
        begin = data.rfind(b"<unk>\0")
        words = data[begin:-1].decode().split("\0") if begin >= 0 else []
        if data[-1] or len(words) not in (count, count + 1):  # <unk> does not count where the ARPA had none
            raise ValueError
        return words


def _fields(line: str) -> list[str]:
    return [field for field in re.split(f"[{_SPACES}]+", line) if field]


def _read_file(vocabulary: Vocabulary, path: str) -> Lexicon:
    entries: dict[tuple[str, tuple[int, ...]], None] = {}  # dicts, to keep the order without doubles
    left_out: dict[str, None] = {}
    ends = {vocabulary.delimiter, symbol_labels(vocabulary)[vocabulary.word_end]}

    def spelled() -> Iterator[str]:
        """Words without a spelling; the others go into the lexicon as they are."""
        for line in read_text(path).split("\n"):
            fields = _fields(line)
            if len(fields) < 2 or not ("\t" in line or fields[-1] in ends):
                yield from fields
                continue
            word, *symbols = fields
            spelling = [vocabulary.id_of(symbol) for symbol in (symbols[:-1] if symbols[-1] in ends else symbols)]
            if None not in spelling and vocabulary.normalize(word):
                entries[word, (*spelling, vocabulary.word_end)] = None
            else:
                left_out[word] = None

    try:
        plain = _spell(vocabulary, spelled())
    except OSError as error:
        raise UserError(f"lexicon: {path} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"lexicon: {path} is no text in UTF-8 or UTF-16 ({error})") from error
    return Lexicon((*entries, *plain.entries), (*left_out, *plain.left_out))


def _spell(vocabulary: Vocabulary, words: Iterable[str]) -> Lexicon:
    entries, left_out = [], []
    for word in dict.fromkeys(words):
        if word in _NO_WORDS:
            continue
        try:
            spelling = tuple(vocabulary.encode(word))
        except KeyError:
            spelling = ()
        if spelling:
            entries.append((word, spelling))
        else:
            left_out.append(word)
    return Lexicon(tuple(entries), tuple(left_out))


def _check(vocabulary: Vocabulary, lexicon: Lexicon, name: str) -> None:
    total = len(lexicon.entries) + len(lexicon.left_out)
    if not total:
        raise UserError(f"{name} holds no word")
    if len(lexicon.entries) > _TOO_FEW * total:
        return
    word = lexicon.left_out[0]
    case = next((c for c in (word.upper(), word.lower()) if c != word and not vocabulary.unknown(c)), "")
    advice = f"the vocabulary would spell it {case!r}: write the file so" if case else "use one of the same alphabet"
    raise UserError(
        f"{name} does not match the model's vocabulary, which spells {len(lexicon.entries)} of its {total:,} words "
        f"(not {word!r}, for one); {advice}"
    )
