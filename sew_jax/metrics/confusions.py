"""Which words go wrong: transcripts aligned word by word, the commonest errors of each kind, the worst utterances."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import jiwer

# (reference word, hypothesis word); one of them is empty where a word has no counterpart
Alignment = list[tuple[str, str]]


class Confusions(NamedTuple):
    """The commonest errors of a system, each with how often it was made, most frequent first."""

    substitutions: list[tuple[str, str, int]]  # word of the reference, word in its place
    deletions: list[tuple[str, int]]
    insertions: list[tuple[str, int]]


def align(references: Sequence[str], hypotheses: Sequence[str]) -> list[Alignment]:
    """The shortest edits from references to hypotheses, the same that `wer.count_errors` counts."""
    pairs = [(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True)]
    # jiwer refuses empty references, and has nothing to say of equal ones
    asked = [i for i, (reference, hypothesis) in enumerate(pairs) if reference and reference != hypothesis]
    said, written = ([" ".join(pairs[i][side]) for i in asked] for side in (0, 1))
    chunks = dict(zip(asked, jiwer.process_words(said, written).alignments, strict=True)) if asked else {}
    return [
        [pair for chunk in chunks[i] for pair in _pairs(chunk, *pairs[i])]
        if i in chunks
        else [(word if reference else "", word) for word in hypothesis]
        for i, (reference, hypothesis) in enumerate(pairs)
    ]


def _pairs(chunk: jiwer.AlignmentChunk, reference: list[str], hypothesis: list[str]) -> Alignment:
    theirs = reference[chunk.ref_start_idx : chunk.ref_end_idx]
    ours = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
    return list(zip(theirs or [""] * len(ours), ours or [""] * len(theirs), strict=True))


def word_errors(alignment: Alignment) -> int:
    """Substitutions, deletions and insertions together."""
    return sum(reference != hypothesis for reference, hypothesis in alignment)


def count_confusions(alignments: Sequence[Alignment], most: int = 10) -> Confusions:
    """The `most` frequent errors of each kind, word by word; those of equal frequency by the alphabet."""
    counts = collections.Counter(pair for alignment in alignments for pair in alignment if pair[0] != pair[1])
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Confusions(
        [(reference, hypothesis, count) for (reference, hypothesis), count in ranked if reference and hypothesis][
            :most
        ],
        [(reference, count) for (reference, hypothesis), count in ranked if not hypothesis][:most],
        [(hypothesis, count) for (reference, hypothesis), count in ranked if not reference][:most],
    )


def worst_utterances(alignments: Sequence[Alignment], most: int = 10) -> list[int]:
    """Numbers of the utterances with most errors, of equally many the shorter first; those without errors left out."""

    def badness(i: int) -> tuple[int, int, int]:
        words = sum(reference != "" for reference, _ in alignments[i])
        return -word_errors(alignments[i]), words, i

    return [i for i in sorted(range(len(alignments)), key=badness) if word_errors(alignments[i])][:most]
