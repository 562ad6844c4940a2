"""Word and character errors as sums, divided once over a whole corpus. Alignment is jiwer's."""

import dataclasses

import jiwer


@dataclasses.dataclass(frozen=True)
class ErrorCounts:
    """Sums over utterances; add two of them for the counts of both."""

    words: int = 0  # in the references
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    characters: int = 0  # in the references, spaces between words included
    character_errors: int = 0
    utterances: int = 0
    empty: int = 0  # references without a word, of which all that is written is inserted

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))

    @property
    def errors(self) -> int:
        """Of words, all three kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Word errors over reference words; may pass 1. Of no words at all: 0."""
        return self.errors / max(self.words, 1)

    @property
    def cer(self) -> float:
        """Character errors over reference characters."""
        return self.character_errors / max(self.characters, 1)


def count_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Errors of one utterance by the shortest edit; words are separated by white space."""
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not reference:
        said, written = len(hypothesis.split()), len(hypothesis)
        return ErrorCounts(insertions=said, character_errors=written, utterances=1, empty=1)
    words, characters = jiwer.process_words(reference, hypothesis), jiwer.process_characters(reference, hypothesis)
    return ErrorCounts(
        words=len(reference.split()),
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        characters=len(reference),
        character_errors=characters.substitutions + characters.deletions + characters.insertions,
        utterances=1,
    )
