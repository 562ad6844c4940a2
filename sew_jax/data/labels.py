"""Labels of utterances or of frames, as a manifest gives them: the classes that a classifier tells apart."""

import dataclasses
import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from sew_jax.buckets import as_path
from sew_jax.data.segments import read_segments
from sew_jax.data.sources import Source
from sew_jax.data.text_files import read_text
from sew_jax.data.transcripts import Transcripts
from sew_jax.errors import UserError
from sew_jax.files import write_json
from sew_jax.rates import FRAME_SAMPLES, SAMPLE_RATE

LABELS_FILE = "labels.json"
NONE = "none"  # of frames that no segment covers
_SHOWN = 20  # labels on the screen, and in a message


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names of classes, in the order of a classifier's outputs. To batches and readers a label is one symbol.

    Attributes:
      target: what of a source they stand for.
      unit, counted: what has one each, and what of a source names them, in words.
      method: of the Python API, which says what they are.
      always: which there are, whether a source's texts name them or not.
    """

    names: tuple[str, ...]
    target = "label"
    unit, counted, method = "utterance", "utterances", "classify"
    always: ClassVar[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        more = f" and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return ", ".join(self.names[:_SHOWN]) + more

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def found_in(self, text: str) -> list[str]:
        """The labels that a source's text names."""
        return [text]

    def read(self, text: str, frames: int, pace: float = 1.0) -> np.ndarray:
        """The ids that a source's text says of an utterance of so many frames, played at a pace: one, or one a frame.

        Raises:
          KeyError: one is none of these.
        """
        del frames, pace
        return np.array([self._numbers[text]], np.int32)

    def count_symbols(self, samples_U: np.ndarray) -> np.ndarray:
        """(U,) the most labels of utterances of so many samples."""
        return np.ones(len(samples_U), np.int32)

    def split(self, text: str) -> list[str]:
        """The labels of an utterance as `decode` writes them."""
        return [text]

    def encode(self, text: str) -> list[int]:
        """The inverse of `decode`."""
        return [self._numbers[label] for label in self.split(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Labels of ids as one text."""
        return " ".join(self.names[i] for i in ids)

    def save(self, folder: Path) -> None:
        """Writes labels.json: the names in their order."""
        write_json(folder / LABELS_FILE, list(self.names))

    @classmethod
    def load(cls, folder: Path) -> "Labels":
        """What `save` wrote.

        Raises:
          UserError: there is no such file, or it is something else.
        """
        path = as_path(folder) / LABELS_FILE
        try:
            names = json.loads(read_text(path))
        except (OSError, ValueError) as error:
            raise UserError(f"init_from: {path} cannot be read ({error}); was it edited?") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"init_from: {path} is no list of labels; was it edited?")
        return cls(tuple(names))


@dataclasses.dataclass(frozen=True)
class FrameLabels(Labels):
    """A class for each frame of a model, as `segments` say; to batches and readers an utterance is a text of these.

    A frame has the label of the segment that its middle lies in, of several the one that begins last (of those that
    begin together the later one), else `none`, which is always a class.
    """

    frame_samples: int = FRAME_SAMPLES
    target = "segments"
    unit, counted, method = "frame", "segments", "label_frames"
    always: ClassVar[tuple[str, ...]] = (NONE,)

    def found_in(self, text: str) -> list[str]:
        return [segment.label for segment in read_segments(text)]

    def read(self, text: str, frames: int, pace: float = 1.0) -> np.ndarray:
        ids_T, per_second = np.full(frames, self._numbers[NONE], np.int32), SAMPLE_RATE / (self.frame_samples * pace)
        for segment in read_segments(text):
            first, end = (math.ceil(x * per_second - 0.5) for x in (segment.start, segment.end))
            ids_T[first:end] = self._numbers[segment.label]
        return ids_T

    def count_symbols(self, samples_U: np.ndarray) -> np.ndarray:
        return (samples_U // self.frame_samples).astype(np.int32)

    def split(self, text: str) -> list[str]:
        return text.split()


def choose_labels(source: Source, form: Labels, known: Labels | None) -> tuple[Labels, str]:
    """Those of a source in the alphabet's order, or the known ones where these have all of them; and a line of counts.

    Args:
      form: labels of the kind that is wanted, without names.

    Raises:
      UserError: there is nothing to tell apart.
    """
    counts = Counter(itertools.chain.from_iterable(form.found_in(source.text(i) or "") for i in range(len(source))))
    found = sorted({*counts, *form.always})
    if len(found) < 2:
        raise UserError(
            f"data: all {form.unit}s of {source.name} have the label {found[0]!r}, and there is nothing to tell apart; "
            "name splits that have several by --config.split"
        )
    fits = known and type(known) is type(form) and set(found) <= set(known.names)
    labels = known if known and fits else dataclasses.replace(form, names=tuple(found))
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(_SHOWN))
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return labels, f"  labels    {len(labels)}, {form.counted} of each: {shown}{more}"


def spell_labels(labels: Labels, samples_U: np.ndarray, note: str) -> Transcripts:
    """Labels as texts of symbols.

    Args:
      samples_U: the most that there may be of each utterance.
      note: a line for the screen.
    """
    symbols_U = labels.count_symbols(samples_U)
    return Transcripts(symbols_U, symbols_U, [note])


def check_labels(labels: Labels, source: Source) -> None:
    """Whether a classifier can be right on each utterance of a source.

    Raises:
      UserError: one has a label that the classifier does not know.
    """
    unknown = {i: other for i in range(len(source)) if (other := _unknown(labels, source.text(i) or ""))}
    if unknown:
        names = sorted(set().union(*unknown.values()))
        more = f" and {len(unknown) - 1} more utterances" if len(unknown) > 1 else ""
        raise UserError(
            f"data: {source.id(next(iter(unknown)))}{more} of {source.name} have labels that training did not "
            f"({_listed(names)}; it had {labels}); mend them, leave them out, or train with them"
        )


def _unknown(labels: Labels, text: str) -> set[str]:
    return {*labels.found_in(text), *labels.always} - {*labels.names}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
