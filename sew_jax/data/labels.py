"""The labels of utterances, as a manifest's `label` gives them: the classes that a classifier tells apart."""

import collections
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sew_jax.buckets import as_path
from sew_jax.data.sources import Source
from sew_jax.data.text_files import read_text
from sew_jax.data.transcripts import Transcripts
from sew_jax.errors import UserError
from sew_jax.files import write_json

LABELS_FILE = "labels.json"
_SHOWN = 20  # labels on the screen, and in a message


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names of classes, in the order of a classifier's outputs. To batches and readers a label is one symbol."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        more = f" and {len(self) - _SHOWN} more" if len(self) > _SHOWN else ""
        return ", ".join(self.names[:_SHOWN]) + more

    def encode(self, label: str) -> list[int]:
        """The id of a label, alone in a list. Raises KeyError where it is none of these."""
        try:
            return [self.names.index(label)]
        except ValueError as error:
            raise KeyError(label) from error

    def decode(self, ids: Iterable[int]) -> str:
        """The label of an id, alone in a list."""
        (label,) = (self.names[i] for i in ids)
        return label

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


def choose_labels(source: Source, known: Labels | None) -> Labels:
    """Those of a source in the alphabet's order, or the known ones where these have all of them.

    Raises:
      UserError: all utterances have the same one.
    """
    found = sorted({source.text(i) or "" for i in range(len(source))})
    if len(found) < 2:
        raise UserError(
            f"data: all {len(source)} utterances of {source.name} have the label {found[0]!r}, and there is nothing to "
            "tell apart; name splits that have several by --config.split"
        )
    return known if known and set(found) <= set(known.names) else Labels(tuple(found))


def spell_labels(labels: Labels, source: Source) -> Transcripts:
    """The labels of a source as texts of one symbol each, with a line that counts them."""
    counts = collections.Counter(source.text(i) or "" for i in range(len(source)))
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(_SHOWN))
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    ones_U = np.ones(len(source), np.int32)
    return Transcripts(ones_U, ones_U, [f"  labels    {len(labels)}: {shown}{more}"])


def check_labels(labels: Labels, source: Source) -> None:
    """Whether a classifier can be right on each utterance of a source.

    Raises:
      UserError: one has a label that the classifier does not know.
    """
    unknown = [i for i in range(len(source)) if (source.text(i) or "") not in labels.names]
    if unknown:
        other = sorted({source.text(i) or "" for i in unknown})
        more = f" and {len(unknown) - 1} more utterances" if len(unknown) > 1 else ""
        raise UserError(
            f"data: {source.id(unknown[0])}{more} of {source.name} have labels that training did not "
            f"({_listed(other)}; it had {labels}); mend them, leave them out, or train with them"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
