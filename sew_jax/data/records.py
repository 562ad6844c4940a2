"""A prepared dataset: a TFDS dataset of ArrayRecord files, with an index of all its utterances beside them.

    FOLDER/NAME/1.0.0/dataset_info.json, features.json, NAME-SPLIT.array_record-00000-of-00256, index-SPLIT.arrow

Anyone reads it with `tfds.data_source(NAME, split=SPLIT, data_dir=FOLDER)`, without TensorFlow. The index is what the
batch plan reads instead of the records; it is mapped into memory, so that processes share it. Of a dataset in a bucket
it is copied into the user's cache; records stay where they are (`record_files`).
"""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from etils import epath
from google.protobuf.message import DecodeError

from sew_jax.buckets import is_remote
from sew_jax.console import say
from sew_jax.data import audio
from sew_jax.data.problems import AudioError
from sew_jax.data.record_files import RecordFile, Records, open_records
from sew_jax.errors import UserError
from sew_jax.files import cache_folder, write_whole, writing_to
from sew_jax.storage import exists, is_folder, names_in, patient, raise_if_away

VERSION = "1.0.0"
INDEX_SCHEMA = pa.schema(
    {
        "id": pa.large_string(),
        "samples": pa.int64(),
        "text": pa.large_string(),
        "label": pa.large_string(),
        "segments": pa.large_string(),
        "speaker": pa.large_string(),
    }
)
# What `prepare` writes says also whence a piece came (null of what was not cut), and where in its shard a record lies
PREPARED_SCHEMA = pa.unify_schemas(
    [
        INDEX_SCHEMA,
        pa.schema({"source": pa.large_string(), "begin": pa.int64(), "offset": pa.int64(), "bytes": pa.int64()}),
    ]
)
INFO = "dataset_info.json"
_OPENING = threading.Lock()
_LARGE = 64 * 2**20  # bytes of an index that take long enough to say so
_EXPIRY = 30 * 24 * 3600  # seconds after which the copy of an index that nobody opened is removed


def features():
    """TFDS features of a record: `audio` is the bytes of a FLAC file, 16 kHz, one channel, 16 bits."""
    import tensorflow_datasets as tfds  # here: takes most of a second

    text = tfds.features.Text()
    return tfds.features.FeaturesDict(
        {"id": text, "audio": tfds.features.Scalar(np.object_), "samples": np.int64, "text": text, "speaker": text}
    )


def shard_name(name: str, split: str, shard: int, shards: int) -> str:
    """The file name that TFDS gives a shard."""
    return f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


def write_shard(path: Path, rows: Iterable[tuple[dict, bytes]]) -> int:
    """Writes rows of the index with their FLAC bytes as records; returns the bytes of all records."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    layout = features()
    serializer, written = ExampleSerializer(layout.get_serialized_info()), 0
    writer = ArrayRecordWriter(str(path), "group_size:1")  # one record is read at a time
    for row, flac in rows:
        known = {name: row[name] for name in ("id", "samples", "speaker")}
        example = layout.encode_example(known | {"text": row["text"] or "", "audio": flac})
        record = serializer.get_tf_example(example).SerializeToString(deterministic=True)
        writer.write(record)
        written += len(record)
    writer.close()
    return written


def index_bytes(table: pa.Table) -> bytes:
    """The index of a split as an Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


@patient
def write_metadata(folder: epath.Path, splits: dict[str, tuple[list[int], int]], description: str) -> None:
    """Makes the files of a folder a dataset; `splits` give the records of each shard, and the bytes of all."""
    import tensorflow_datasets as tfds

    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(),
        check_data=False,
        description=description,
        split_infos=[tfds.core.SplitInfo(name, lengths, size) for name, (lengths, size) in splits.items()],
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",  # as `shard_name`
    )


def index_name(split: str) -> str:
    """File name of a split's index."""
    return f"index-{split}.arrow"


def dataset_folder(root: epath.Path) -> epath.Path | None:
    """The folder under `root` (or `root`) that holds a dataset written by `prepare`; None where there is none.

    Raises:
      UserError: there are several, or it was not written by `prepare`.
    """
    datasets = [root] if exists(root / INFO) else _datasets_below(root)
    if len(datasets) > 1:
        raise UserError(f"data: {root} holds {len(datasets)} datasets; name one, such as {datasets[0]}")
    if not datasets:
        return None
    if not splits_of_dataset(datasets[0]):
        raise UserError(
            f"data: {datasets[0]} is a TFDS dataset without the index that training reads; write it anew: "
            "python -m sew_jax.main --config=configs/prepare.py --config.data=tfds:NAME"
        )
    return datasets[0]


def _datasets_below(root: epath.Path) -> list[epath.Path]:
    if is_remote(os.fspath(root)):
        return sorted(path.parent for path in root.glob(f"*/*/{INFO}"))
    folders = [root / name for name in names_in(root)] if is_folder(root) else []
    below = [folder / name for folder in folders if is_folder(folder) for name in names_in(folder)]
    return [folder for folder in below if exists(folder / INFO)]


def splits_of_dataset(folder: epath.Path) -> list[str]:
    """Its splits, by name."""
    before, after = index_name("*").split("*")
    found = [name for name in names_in(folder) if name.startswith(before) and name.endswith(after)]
    return [name.removeprefix(before).removesuffix(after) for name in found]


class RecordStore:
    """Utterances in records.

    Raises:
      UserError: there is no such split, or its files are not whole.
    """

    def __init__(self, folder: epath.Path, splits: Sequence[str]):
        have = splits_of_dataset(folder)
        for split in splits:
            if split not in have:
                raise UserError(f"data: {folder} has no split {split}; it has: {', '.join(have)}; set --config.split")
        self._folder, self._splits = os.fspath(folder), list(splits)
        self._local = str(_mirror(folder, splits)) if is_remote(self._folder) else self._folder
        self._open()

    def __getstate__(self):  # processes map the index themselves
        return {"_folder": self._folder, "_splits": self._splits, "_local": self._local}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()

    @patient
    def _open(self) -> None:
        tables = []
        for split in self._splits:
            path = os.path.join(self._local, index_name(split))
            try:
                tables.append(pa.ipc.open_file(pa.memory_map(path)).read_all())
            except (OSError, pa.ArrowInvalid) as error:
                raise_if_away(error)
                raise UserError(f"data: {path} cannot be read ({error}); run prepare again") from error
        self.index = _with_all_columns(pa.concat_tables(tables))
        self._records: Records = None

    def _open_records(self) -> None:
        """What needs TFDS. It imports its parts at their first use, in which two threads can wait for each other."""
        with _OPENING:
            if self._records is not None:
                return
            from tensorflow_datasets.proto import tf_example_pb2

            self._example = tf_example_pb2.Example
            files = _record_files(self._local, self._folder, self._splits)
            total = sum(file.records for file in files)
            if total != len(self.index):
                raise UserError(
                    f"data: {self._folder} holds {total} records and an index of {len(self.index)}; run prepare again"
                )
            self._records = open_records(files, self.index)  # last: tells other threads that all is there

    def audio(self, row: int, begin: int, samples: int | None) -> np.ndarray:
        """int16 (samples,). Raises AudioError where the record is damaged, OSError where its storage fails."""
        if self._records is None:
            self._open_records()
        record = self._records[row]
        try:
            flac = self._example.FromString(record).features.feature["audio"].bytes_list.value[0]
        except (DecodeError, IndexError) as error:
            raise AudioError(f"has a record that cannot be read ({' '.join(str(error).split())[:80]})") from error
        return audio.read(flac, begin, samples)


def _with_all_columns(index: pa.Table) -> pa.Table:
    """An index that was written before there were labels or segments, with none."""
    for name in ("label", "segments"):
        if name not in index.column_names:
            index = index.append_column(name, pa.nulls(len(index), pa.large_string()))
    return index


@patient
def _record_files(local: str, folder: str, splits: Sequence[str]) -> list[RecordFile]:
    """The shards of some splits in order. TFDS is not asked: it would import the classes that features.json names."""
    try:
        info = json.loads(Path(local, INFO).read_text(encoding="utf-8"))
        counts_of = {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
        name, lengths = str(info["name"]), [(split, counts_of[split]) for split in splits]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise_if_away(error)
        raise UserError(f"data: {folder}/{INFO} cannot be read ({error!r}); run prepare again") from error
    if os.path.basename(name) != name:
        raise UserError(f"data: {folder}/{INFO} names files out of its folder ({name}); run prepare again")
    return [
        RecordFile(os.path.join(folder, shard_name(name, split, i, len(counts))), count)
        for split, counts in lengths
        for i, count in enumerate(counts)
    ]


def _mirror(folder: epath.Path, splits: Sequence[str]) -> Path:
    """A folder of the user's cache with what is not records of a remote dataset, as long as it is the same."""
    info = (folder / INFO).read_bytes()
    mirrors = cache_folder() / "datasets"
    own = mirrors / hashlib.sha256(os.fspath(folder).encode() + info).hexdigest()[:16]
    local = own / folder.parent.name / folder.name
    with writing_to(local, "make room there, or set SEW_JAX_CACHE to another folder"):
        local.mkdir(parents=True, exist_ok=True)
        os.utime(own)
        for name in (INFO, *map(index_name, splits)):
            if not (local / name).exists():
                size = (folder / name).stat().length
                if size > _LARGE:
                    say(f"copying {folder / name} ({size / 2**20:.0f} MiB)")
                write_whole(local / name, (folder / name).read_bytes())
    for other in mirrors.iterdir():
        if other.stat().st_mtime < time.time() - _EXPIRY:
            shutil.rmtree(other, ignore_errors=True)
    return local
