"""What the processes of a job must have in common, compared before they compute; a process without others has it."""

import collections
import contextlib
import hashlib
import json
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from sew_jax.buckets import look_again, make_folder
from sew_jax.errors import Unavailable, UserError
from sew_jax.files import WORKDIR_HINT, writing_to
from sew_jax.runtime.distributed import of_first_process, same_everywhere, texts_of_all
from sew_jax.runtime.versions import versions
from sew_jax.storage import errors_in_words, exists, patient

_T = TypeVar("_T")
_PATIENCE_S = 30.0  # network file systems show a new file within seconds
_LONGEST = 120  # characters of a value on screen
_ABSENT = "nothing"


def at_all_processes(work: Callable[[], _T]) -> _T:
    """What `work` gives; each process does it, and none goes on where one could not.

    Raises:
      UserError, Unavailable: that of `work`; elsewhere, which process has met one and what it says.
    """
    result, problem = None, None
    try:
        with errors_in_words():
            result = work()
    except (UserError, Unavailable) as error:
        problem = error
    met = texts_of_all(json.dumps([problem.status, f"{_here()}: {problem}"] if problem else []))
    if problem:
        raise problem
    if failed := [json.loads(each) for each in met if json.loads(each)]:
        status, text = failed[0]
        more = f" ({len(failed) - 1} more processes have an error)" if failed[1:] else ""
        raise (Unavailable if status == Unavailable.status else UserError)(text + more)
    return result  # type: ignore[return-value]


def check_same(record: dict[str, Any]) -> None:
    """Compares what the processes say of the run.

    Raises:
      UserError: it differs; with the key, the processes and their hosts.
    """
    mine = _flat(record)
    if same_everywhere(json.dumps(mine, sort_keys=True)):
        return
    heres, records = zip(*map(json.loads, texts_of_all(json.dumps([_here(), mine]))), strict=True)
    keys = [key for key in dict.fromkeys(key for flat in records for key in flat) if _values(records, key)[1:]]
    usual, *others = _values(records, keys[0])
    odd = [here for here, flat in zip(heres, records, strict=True) if flat.get(keys[0], _ABSENT) == others[0]]
    more = f"; {len(keys) - 1} more keys differ ({', '.join(keys[1:4])})" if keys[1:] else ""
    raise UserError(
        f"the processes of this job differ in {keys[0]}: {odd[0]}{f' and {len(odd) - 1} more' if odd[1:] else ''} has "
        f"{_short(others[0])}, others have {_short(usual)}{more}; start all with the same command, code and data"
    )


def check_shared(workdir: Path) -> None:
    """Has all processes read what the first one writes to the workdir.

    Raises:
      UserError: one cannot; after half a minute.
    """
    if jax.process_count() == 1:
        return
    first = jax.process_index() == 0
    token = workdir / f".shared_{of_first_process(secrets.token_hex(8))}"

    @patient
    def place_token() -> None:
        make_folder(workdir)
        for old in workdir.glob(".shared_*"):  # of a job that was killed here
            old.unlink(missing_ok=True)
        token.write_text("")

    def write() -> None:
        if first:
            with writing_to(workdir, WORKDIR_HINT):  # around what waits: it makes an end of faults that pass
                place_token()

    @patient
    def is_there() -> bool:
        look_again(workdir)
        return exists(token)

    def look() -> None:
        end = time.monotonic() + _PATIENCE_S
        while not is_there():
            if time.monotonic() > end:
                raise UserError(
                    f"workdir: {workdir} is not the one of process 0, whose file did not appear in it within "
                    f"{_PATIENCE_S:.0f} s; --workdir must lie on storage that all processes share"
                )
            time.sleep(0.2)

    try:
        at_all_processes(write)
        at_all_processes(look)
    finally:
        if first:
            with contextlib.suppress(OSError):  # where nothing can be written, nothing was
                patient(token.unlink)(missing_ok=True)


def what_computes() -> dict[str, str]:
    """Versions, and a digest of this package's sources: of a commit it may lack, or may have been changed since."""
    code, package = hashlib.sha256(), Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        code.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return versions() | {"code": code.hexdigest()}


def _here() -> str:
    return f"process {jax.process_index()} ({socket.gethostname()})"


def _values(records: tuple[dict[str, str], ...], key: str) -> list[str]:
    """The values of a key, the most usual first."""
    return [value for value, _ in collections.Counter(flat.get(key, _ABSENT) for flat in records).most_common()]


def _short(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."


def _flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """`{"a.b": JSON of the value}`."""
    if not isinstance(tree, dict):
        return {prefix: json.dumps(tree)}
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
