"""lhotse's manifests: cuts, supervisions with the recordings beside them, or recordings alone.

A cut with one supervision or none is an utterance; of a cut with several each supervision is one, as lhotse's own
datasets for recognition take it. https://lhotse.readthedocs.io
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from sew_jax.data.manifests import AUDIO_KEYS, Row
from sew_jax.errors import UserError
from sew_jax.storage import exists

Objects = Iterable[tuple[int, dict[str, Any] | str]]  # (line, JSON object, or what is wrong with it)

_SOURCES = {
    "command": "is the output of a command, which is never run; write it as a file and name that",
    "memory": "is inside the manifest; write it as a file and name that",
    "shar": "lies in a Shar archive; write it as a file and name that",
}


def is_object(row: dict[str, Any] | str) -> bool:
    """Whether a JSON object is one of lhotse's, rather than one that names its audio."""
    keys = set(row)
    return bool({"recording", "supervisions", "tracks", "recording_id", "sources"} & keys) and not {*AUDIO_KEYS} & keys


def rows(path: epath.Path, objects: Objects, read: Callable[[epath.Path], Objects]) -> Iterator[Row]:
    """Rows of a manifest of any kind; `read` reads another file."""
    recordings: dict[str, Any] | None = None
    for number, row in objects:
        where = f"{path.name}:{number}"
        if isinstance(row, str):
            yield Row(where, problem=row)
            continue
        try:
            if "sources" in row:
                yield _of_recording(row, where, {"id": row["id"], "duration": row["duration"]})
            elif "recording_id" in row:
                recordings = _recordings_beside(path, read) if recordings is None else recordings
                yield _of_supervision(row, where, recordings)
            else:
                yield from _of_cut(row, where)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
            yield Row(where, id=_name(row), problem=f"is no cut, supervision or recording of lhotse's ({error!r})")


def _of_cut(cut: dict[str, Any], where: str) -> Iterator[Row]:
    if "tracks" in cut or cut.get("type") == "PaddingCut":
        yield Row(where, id=_name(cut), problem=f"is a {cut.get('type', 'MixedCut')}; write its audio as a file")
        return
    if not cut.get("recording"):
        yield Row(where, id=_name(cut), problem="has no recording; features alone are not audio")
        return
    supervisions = cut.get("supervisions") or []
    if len(supervisions) < 2:
        part = {
            "id": cut["id"],
            "offset": float(cut["start"]),
            "duration": cut["duration"],
            "channel": cut.get("channel"),
        }
        yield _of_recording(cut["recording"], where, part | _said(*supervisions))
        return
    for supervision in supervisions:
        start = max(float(cut["start"]) + float(supervision["start"]), 0.0)
        end = float(cut["start"]) + float(supervision["start"]) + float(supervision["duration"])
        part = {"id": supervision["id"], "offset": start, "duration": end - start}
        part["channel"] = supervision.get("channel", cut.get("channel"))
        yield _of_recording(cut["recording"], where, part | _said(supervision))


def _of_supervision(supervision: dict[str, Any], where: str, recordings: dict[str, Any]) -> Row:
    recording = recordings.get(supervision["recording_id"])
    if recording is None:
        problem = f"is of recording {supervision['recording_id']}, which the manifest of recordings lacks"
        return Row(where, id=_name(supervision), problem=problem)
    part = {"offset": float(supervision["start"]), "duration": supervision["duration"]}
    part |= {"id": supervision["id"], "channel": supervision.get("channel")}
    return _of_recording(recording, where, part | _said(supervision))


def _said(supervision: dict[str, Any] | None = None) -> dict[str, Any]:
    if supervision is None:
        return {}
    return {"text": supervision.get("text"), "speaker": str(supervision.get("speaker") or "")}


def _of_recording(recording: dict[str, Any], where: str, part: dict[str, Any]) -> Row:
    """A part of a recording, from the file that holds its channel; recordings without `offset` are whole."""
    part["id"] = str(part["id"])
    if recording.get("transforms"):
        return Row(where, id=part["id"], problem="is changed when it is read (transforms); write its audio as a file")
    if part.get("offset") == 0 and abs(float(part.get("duration") or 0) - float(recording["duration"])) < 1e-4:
        part["offset"] = None  # all of the file: what the manifest says of its length is checked
    wanted = part.pop("channel", None)
    wanted = [wanted] if isinstance(wanted, int) else wanted
    sources = [s for s in recording["sources"] if not wanted or set(wanted) & set(s["channels"])]
    if len(sources) != 1:
        problem = f"takes {len(sources)} files together; write its audio as one file"
        return Row(where, id=part["id"], problem=problem)
    (source,) = sources
    problem = _SOURCES.get(source["type"])
    if source["type"] == "url" and source["source"].startswith(("http:", "https:")):
        problem = "lies on a web server; download it"
    channel = None
    if wanted and len(source["channels"]) > 1 and set(wanted) != set(source["channels"]):
        if len(wanted) > 1:
            problem = "takes some of a file's channels together; take one, or all"
        channel = source["channels"].index(wanted[0])
    name = source["source"]
    if not problem and not (isinstance(name, str) and name):
        problem = "has a source without a name"
    return Row(where, audio="" if problem else name, channel=channel, problem=problem, **part)


def _recordings_beside(path: epath.Path, read: Callable[[epath.Path], Objects]) -> dict[str, Any]:
    """By id, from the manifest whose name has `recordings` where this one's has `supervisions`."""
    names = dict.fromkeys((re.sub("supervisions", "recordings", path.name), "recordings.jsonl.gz", "recordings.jsonl"))
    for name in names:
        beside = path.parent / name
        if name != path.name and exists(beside):
            return {str(row["id"]): row for _, row in read(beside) if isinstance(row, dict) and "sources" in row}
    raise UserError(f"data: {path} holds supervisions; put their recordings beside it, as {next(iter(names))}")


def _name(row: dict[str, Any]) -> str | None:
    return str(row["id"]) if "id" in row else None
