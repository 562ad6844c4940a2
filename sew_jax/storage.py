"""Storage that does not answer: told from damage and from mistakes, waited for, and given up after a while.

What passes by itself is asked for again, with growing pauses (`patient`). What says so in the end is `Unavailable`.
"""

import contextlib
import errno
import functools
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import tenacity

from sew_jax.console import format_duration, say
from sew_jax.errors import Unavailable, UserError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
PATIENCE_S = float(os.environ.get("SEW_JAX_PATIENCE_S", 600))  # from the environment, as processes that read inherit it
_QUIET_S = 60.0  # between two lines about the same waiting, of whatever thread

_NAMES = "EIO ESTALE ETIMEDOUT ENOTCONN EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET ECONNRESET ECONNREFUSED"
_NAMES += " ECONNABORTED EREMOTEIO ENOLINK ECOMM ENONET EBUSY ETIME"
_ERRNOS = {getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name)}
_SAID = [os.strerror(number) for number in sorted(_ERRNOS - {errno.EBUSY})]  # by libraries without errno
_HTTP = {408, 425, 429, 500, 502, 503, 504}
# Words of absl::Status, as TensorStore and ArrayRecord raise them
_STATUSES = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED")
# Of libraries that need not be installed: fsspec, aiohttp, botocore, requests, urllib3, httpx
_CLASSES = {
    *["FSTimeoutError", "ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError"],
    *["EndpointConnectionError", "HTTPClientError", "ProtocolError", "TransportError", "ReadTimeoutError"],
    *["ProxyError", "ReadTimeout", "ChunkedEncodingError"],  # gcsfs raises the first for 502
}
_UNFINISHED = ".orbax-checkpoint-tmp"
# google.auth's, google.cloud's and botocore's of an account without a name or a right
_REFUSALS = {"DefaultCredentialsError", "RefreshError", "Forbidden", "Unauthorized", "NoCredentialsError"}
_lock, _spoke_at = threading.Lock(), float("-inf")


def is_away(error: BaseException | None, seen_before: bool = False) -> bool:
    """Whether an error, or what it came of, says that storage does not answer at the moment.

    Args:
      seen_before: what is asked for was there once; that it is gone with its whole folder is a mount that is away.
    """
    asked: set[int] = set()
    while error is not None and id(error) not in asked:
        asked.add(id(error))
        if isinstance(error, Unavailable):
            return True
        if isinstance(error, (UserError, MemoryError)) or type(error).__name__ in (
            "JaxRuntimeError",
            "XlaRuntimeError",
        ):
            return False
        if _says_so(error) or (seen_before and _is_gone_with_its_folder(error)):
            return True
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)) and not isinstance(error, BrokenPipeError):
        return True
    if getattr(error, "errno", None) in _ERRNOS or _http_status(error) in _HTTP:
        return True
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and error.errno is None and _UNFINISHED in str(error):
        return True  # Orbax's own look at the folder that it has just made
    if _CLASSES & {parent.__name__ for parent in type(error).__mro__}:
        return True
    text = str(error)
    return any(text.startswith(word) or f" {word}:" in text for word in _STATUSES) or any(s in text for s in _SAID)


def _http_status(error: BaseException) -> int:
    """As gcsfs, aiohttp, botocore, requests and google-cloud write it; 0 where there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    owners = ((response, "status_code"), *((error, name) for name in ("status", "code", "status_code")))
    found = (getattr(owner, name, None) for owner, name in owners)  # one by one: aiohttp warns of what comes later
    return next((int(x) for x in found if isinstance(x, (int, str)) and str(x).isdigit()), 0)


def _is_gone_with_its_folder(error: BaseException) -> bool:
    """A file without its folder, or in an empty one, as below a mount that is away: who deletes leaves something."""
    if not isinstance(error, FileNotFoundError) or not isinstance(error.filename, (str, os.PathLike)):
        return False
    try:
        return not os.listdir(os.path.dirname(os.path.abspath(error.filename)))
    except OSError:
        return True


def is_there(root: os.PathLike | str) -> bool:
    """Whether a local file, or a folder with something in it, is there; an empty one may be the place of a mount."""
    try:
        with os.scandir(os.fspath(root)) as entries:
            return next(entries, None) is not None
    except NotADirectoryError:
        return True
    except FileNotFoundError:
        return False


def patient(
    function: Callable[..., Any] | None = None, *, seen_before: bool = False, doubtful: type[Exception] | None = None
) -> Callable[..., Any]:
    """A function that is called again while storage does not answer; it must be one that may be called again.

    Args:
      seen_before: as in `is_away`.
      doubtful: an error which is believed when it comes twice: storage may have been away for the first time alone.

    Raises:
      Unavailable: storage has not answered for `PATIENCE_S`.
    """
    if function is None:
        return functools.partial(patient, seen_before=seen_before, doubtful=doubtful)

    def away(error: BaseException) -> bool:
        return not isinstance(error, Unavailable) and is_away(error, seen_before)

    @functools.wraps(function)
    def asked(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:
            if not away(error) and not (doubtful and isinstance(error, doubtful)):
                raise
            problem = error
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception(away),
            wait=tenacity.wait_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S) + tenacity.wait_random(0, FIRST_PAUSE_S),
            stop=tenacity.stop_after_delay(PATIENCE_S),
            before_sleep=lambda state: _say_waiting(state.outcome.exception()),
            reraise=True,
        )
        try:
            if away(problem):
                _say_waiting(problem)
                time.sleep(FIRST_PAUSE_S)
            return again(function, *arguments, **options)
        except Exception as error:
            if not away(error):
                raise
            raise unavailable(error) from error

    return asked


def unreadable(path: str) -> OSError | None:
    """Why the system cannot give a file's bytes, which decoders do not tell; None where it can, or it is no file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb", buffering=0) as file:
            while file.read(2**20):
                pass
    except OSError as error:
        return error
    return None


def believed(function: Callable[..., Any], folder: Any) -> Callable[..., Any]:
    """A function whose errors say something of a folder's files, and not of storage that failed in reading them.

    Libraries that look for a file with `exists` say that it is not there. So the system is asked after an error.

    Raises:
      OSError: that of the system, where it cannot give all bytes of the files.
    """

    @functools.wraps(function)
    def asked(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:
            if "://" not in os.fspath(folder) and not is_away(error):
                _read_through(os.fspath(folder))
            raise

    return asked


def _read_through(folder: str) -> None:
    for below, _, files in os.walk(folder, onerror=raise_if_away):
        for name in files:
            if (error := unreadable(os.path.join(below, name))) and is_away(error):
                raise error


@patient
def exists(path: Any) -> bool:
    """As the path's own `exists`, which takes storage that does not answer for a file that is not there."""
    return _kind(path) is not None


@patient
def is_folder(path: Any) -> bool:
    """As the path's own `is_dir`; see `exists`."""
    return _kind(path) == stat.S_IFDIR


@patient
def is_file(path: Any) -> bool:
    """As the path's own `is_file`; see `exists`."""
    return _kind(path) == stat.S_IFREG


@patient
def names_in(folder: Any) -> list[str]:
    """Names of what a folder holds, in order. `glob` and `walk` leave out what they cannot list. Raises OSError."""
    return sorted(p.name for p in folder.iterdir()) if "://" in os.fspath(folder) else sorted(os.listdir(folder))


def _kind(path: Any) -> int | None:
    """`stat.S_IFREG`, `stat.S_IFDIR` or another of what a path names; nothing where nothing is there."""
    if "://" in os.fspath(path):
        try:
            return stat.S_IFDIR if path.stat().is_directory else stat.S_IFREG
        except FileNotFoundError:
            return None
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise_if_away(error)
        return None


def raise_if_away(error: Exception) -> None:
    """What storage that does not answer says goes on as it is, before an error is read as damage or a mistake."""
    if is_away(error):
        raise error


def unavailable(error: BaseException) -> Unavailable:
    """What is said in the end of storage that stayed away."""
    if isinstance(error, Unavailable):
        return error
    return Unavailable(
        f"storage does not answer ({_in_words(error)}); nothing is lost, the same command goes on when it does"
    )


@contextlib.contextmanager
def errors_in_words() -> Iterator[None]:
    """Turns whatever says that storage is away into `Unavailable`, and what says that it refuses into `UserError`."""
    try:
        yield
    except (UserError, Unavailable):
        raise
    except Exception as error:
        if is_away(error):
            raise unavailable(error) from error
        if why := refusal(error):
            raise UserError(
                f"storage refuses this account ({why}); log in (gcloud auth application-default login, or AWS's keys "
                "in the environment), or have it given the right to list, read, write and delete there"
            ) from error
        raise


def refusal(error: BaseException | None) -> str:
    """In words, what an object store says to an account without the right; empty where an error says no such thing."""
    while error is not None:
        text = " ".join(str(error).split())[:200]
        known = type(error).__name__ in _REFUSALS and type(error).__module__.startswith(("google.", "botocore"))
        said = text.startswith("Forbidden: ") or "PERMISSION_DENIED" in text  # gcsfs, TensorStore
        if known or said or _http_status(error) in (401, 403):
            return text or type(error).__name__
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return ""


def _say_waiting(error: BaseException) -> None:
    global _spoke_at
    with _lock:
        if time.monotonic() - _spoke_at < _QUIET_S:
            return
        _spoke_at = time.monotonic()
    patience = format_duration(PATIENCE_S)
    say(f"  ! storage does not answer ({_in_words(error)}); it is asked again for up to {patience}", everywhere=True)


def _in_words(error: BaseException) -> str:
    """The error that names a file or a reason, among those it came of, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__
