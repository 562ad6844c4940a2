"""Names of files as people write them: addresses, separators of Windows, either form of Unicode."""

import os
import unicodedata
import urllib.parse

from etils import epath

from sew_jax.buckets import is_remote
from sew_jax.storage import exists

_ROOTS = ("{data_root}/", "$data_root/")  # SpeechBrain's words for where relative names begin


class AddressError(ValueError):
    """An address that nothing is read from; the message says so, without the address."""


def open_address(path: str) -> epath.Path:
    """A local path, or that of a bucket. Raises AddressError."""
    try:
        return epath.Path(path)
    except KeyError as error:  # whatever etils has no file system for
        raise AddressError(f"lies at {path.partition('://')[0]}://, which is not read; download it") from error


def find_name(folder: str, name: str) -> str:
    r"""A file's name as the file system has it; the name itself where there is none such.

    A `file:` address is a path; `\` parts folders where no file has it in its name; letters with marks may be one
    character or several (a Mac writes several).

    Args:
      folder: where a relative name begins.
    """
    for root in _ROOTS:
        name = name.removeprefix(root)
    if name.startswith(("file:///", "file://localhost/")):
        name = urllib.parse.unquote(name.removeprefix("file://").removeprefix("localhost"))
    if is_remote(name) or (name.isascii() and "\\" not in name):
        return name.removeprefix("./")
    written = (name, name.replace("\\", "/"))
    forms = [*written, *(unicodedata.normalize(form, one) for form in ("NFC", "NFD") for one in written)]
    return next((one for one in forms if exists(os.path.join(folder, one))), name).removeprefix("./")
