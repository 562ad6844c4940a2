"""Datasets by their TFDS name, whose audio TensorFlow alone can unpack, as input of `prepare`."""

import functools
from collections.abc import Sequence

import numpy as np

from sew_jax.console import say
from sew_jax.data import audio
from sew_jax.data.audio import AudioError
from sew_jax.data.entries import Entry
from sew_jax.errors import UserError
from sew_jax.rates import SAMPLE_RATE

SCHEME = "tfds:"
_TEXT = ("text", "transcription", "transcript", "sentence", "normalized_text")  # first that is there
_SPEAKER = ("speaker_id", "speaker", "client_id")
_SAY_EVERY = 20_000


def list_tfds(name: str, splits: Sequence[str]) -> dict[str, list[Entry]]:
    """The utterances of each split (none given: of all), after TFDS has downloaded and prepared the dataset.

    Raises:
      UserError: TensorFlow is missing, or there is no such dataset or split, or it has no audio.
    """
    info = _builder(name).info
    missing = [split for split in splits if split not in info.splits]
    if missing:
        raise UserError(f"data: tfds:{name} has no split {missing[0]}; it has: {', '.join(sorted(info.splits))}")
    return {split: _list_split(name, split) for split in splits or sorted(info.splits)}


def read_tfds(path: str) -> np.ndarray:
    """int16 (samples,) of an entry's path, `tfds:NAME/SPLIT#ROW`. Raises AudioError."""
    where, _, row = path.removeprefix(SCHEME).rpartition("#")
    name, _, split = where.rpartition("/")
    feature = _audio_feature(name)
    value = _records(name, split)[int(row)][feature]
    if isinstance(value, bytes):  # a dataset that keeps files as they are
        return audio.read(value)
    if not len(value):
        raise AudioError("holds no audio")
    return audio.to_canonical(value, _builder(name).info.features[feature].sample_rate or SAMPLE_RATE)


def _list_split(name: str, split: str) -> list[Entry]:
    import tensorflow_datasets as tfds

    features = _builder(name).info.features
    text, speaker = (next((k for k in names if k in features), None) for names in (_TEXT, _SPEAKER))
    wanted = {key: True for key in ("id", text, speaker) if key in features}
    # audio stays packed: there may be hundreds of hours of it
    layout = tfds.decode.PartialDecoding(wanted).extract_features(features)
    records = _builder(name).as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    entries = []
    for i in range(len(records)):
        if i and i % _SAY_EVERY == 0:
            say(f"  listing   {split}: {i} of {len(records)}")
        row = layout.deserialize_example_np(records[i]) if wanted else {}
        entries.append(
            Entry(
                id=_word(row.get("id", f"{split}-{i:07d}")),
                path=f"{SCHEME}{name}/{split}#{i}",
                text=" ".join(_word(row[text]).split()) if text else None,
                speaker=_word(row[speaker]) if speaker else "",
            )
        )
    return entries


def _word(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _audio_feature(name: str) -> str:
    import tensorflow_datasets as tfds

    features = _builder(name).info.features
    found = [key for key, feature in features.items() if isinstance(feature, tfds.features.Audio)]
    if not found:
        raise UserError(f"data: tfds:{name} has no audio; its features are {', '.join(features)}")
    return found[0]


@functools.cache
def _builder(name: str):
    try:
        import importlib_resources  # noqa: F401 - which TFDS needs, but does not require
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"data: tfds:{name} needs TensorFlow (pip install tensorflow importlib_resources); "
            "LibriSpeech works without it: unpack its archives "
            "(tar xf) and give the folder"
        ) from error
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(f"data: tfds:{name} is unknown to TFDS: {str(error).strip().splitlines()[0]}") from error
    builder.download_and_prepare()
    return builder


@functools.cache
def _records(name: str, split: str):
    return _builder(name).as_data_source(split)
