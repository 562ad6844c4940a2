"""Labels of utterances or of frames, as a manifest gives them: the classes that a classifier tells apart."""

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

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
      unit: what has one each, in words.
      method: of the Python API, which says what they are.
    """

    names: tuple[str, ...]
    target = "label"
    unit, method = "utterance", "classify"

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        more = f" and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return ", ".join(self.names[:_SHOWN]) + more

    def told(self, text: str, samples: int, pace: float = 1.0) -> str:
        """What a source's text says of so many samples, played at a pace: labels as `encode` takes them."""
        del samples, pace
        return text

    def count_symbols(self, samples_U: np.ndarray) -> np.ndarray:
        """(U,) labels of utterances of so many samples."""
        return np.ones(len(samples_U), np.int32)

    def split(self, text: str) -> list[str]:
        """The labels of an utterance."""
        return [text]

    def encode(self, text: str) -> list[int]:
        """The ids of an utterance's labels. Raises KeyError where one is none of these."""
        try:
            return [self.names.index(label) for label in self.split(text)]
        except ValueError as error:
            raise KeyError(text) from error

    def decode(self, ids: Iterable[int]) -> str:
        """The inverse of `encode`."""
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

    A frame has the label of the segment that its middle lies in, of several the one that begins last, else `none`.
    """

    frame_samples: int = FRAME_SAMPLES
    target = "segments"
    unit, method = "frame", "label_frames"

    def told(self, text: str, samples: int, pace: float = 1.0) -> str:
        frames, per_second = samples // self.frame_samples, SAMPLE_RATE / (self.frame_samples * pace)
        names = [NONE] * frames
        for segment in read_segments(text):
            first, end = (min(math.ceil(x * per_second - 0.5), frames) for x in (segment.start, segment.end))
            names[first:end] = [segment.label] * (end - first)
        return " ".join(names)

    def count_symbols(self, samples_U: np.ndarray) -> np.ndarray:
        return (samples_U // self.frame_samples).astype(np.int32)

    def split(self, text: str) -> list[str]:
        return text.split()


def choose_labels(source: Source, form: Labels, known: Labels | None) -> Labels:
    """Those of a source in the alphabet's order, or the known ones where these have all of them.

    Args:
      form: labels of the kind that is wanted, without names.

    Raises:
      UserError: all utterances or frames have the same one.
    """
    found = sorted(_counted(form, source))
    if len(found) < 2:
        raise UserError(
            f"data: all {form.unit}s of {source.name} have the label {found[0]!r}, and there is nothing to "
            "tell apart; name splits that have several by --config.split"
        )
    fits = known and type(known) is type(form) and set(found) <= set(known.names)
    return known if known and fits else dataclasses.replace(form, names=tuple(found))


def spell_labels(labels: Labels, source: Source, samples_U: np.ndarray) -> Transcripts:
    """The labels of a source as texts of symbols, with a line that counts them.

    Args:
      samples_U: the most that there may be of each utterance.
    """
    counts = _counted(labels, source)
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(_SHOWN))
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    note = f"  labels    {len(labels)}, {labels.unit}s of each: {shown}{more}"
    symbols_U = labels.count_symbols(samples_U)
    return Transcripts(symbols_U, symbols_U, [note])


def labels_of(labels: Labels, source: Source, i: int) -> list[str]:
    """Those of an utterance."""
    return labels.split(labels.told(source.text(i) or "", int(source.samples[i])))


def _counted(labels: Labels, source: Source) -> Counter[str]:
    return Counter(itertools.chain.from_iterable(labels_of(labels, source, i) for i in range(len(source))))


def check_labels(labels: Labels, source: Source) -> None:
    """Whether a classifier can be right on each utterance of a source.

    Raises:
      UserError: one has a label that the classifier does not know.
    """
    unknown = [i for i in range(len(source)) if not set(labels_of(labels, source, i)) <= set(labels.names)]
    if unknown:
        other = sorted({name for i in unknown for name in labels_of(labels, source, i)} - set(labels.names))
        more = f" and {len(unknown) - 1} more utterances" if len(unknown) > 1 else ""
        raise UserError(
            f"data: {source.id(unknown[0])}{more} of {source.name} have labels that training did not "
            f"({_listed(other)}; it had {labels}); mend them, leave them out, or train with them"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
