"""The config files: where they lie, and how they import each other.

A clone has them in `configs/` beside the package, an installed package carries them within itself. They import each
other, and a user's own files import them, as `configs`: a name that only a clone has by itself.
"""

import contextlib
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from sew_jax.errors import UserError

_HERE = Path(__file__).parent
FOLDER = next((folder for folder in (_HERE / "_configs", _HERE.parent / "configs") if folder.is_dir()), _HERE)


def find_config(name: str) -> str:
    """The path of the file that `name` says, with its arguments, as `pretrain.py:base,fixed`, behind it.

    A file of that path goes first; then the project's own, as `demo.py` or `configs/demo.py` from any folder.

    Raises:
      UserError: there is neither.
    """
    path, colon, arguments = name.partition(":")
    candidates = [Path(path), FOLDER / path.removeprefix("configs/")]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        ours = ", ".join(sorted(file.name for file in FOLDER.glob("[a-z]*.py")))
        raise UserError(f"config: {path} does not exist; name a file, or one of {ours}")
    return f"{found}{colon}{arguments}"


@contextlib.contextmanager
def importable(path: str) -> Iterator[None]:
    """Meanwhile `configs` is the folder of a config file, then the project's own; what had the name comes back."""
    kept = _take_modules()
    configs = types.ModuleType("configs")
    configs.__path__ = [str(Path(path.partition(":")[0]).resolve().parent), str(FOLDER)]
    sys.modules["configs"] = configs
    try:
        yield
    finally:
        _take_modules()
        sys.modules.update(kept)


def load_config(name: str) -> ConfigDict:
    """The config that `--config=NAME` names, locked: a mistyped key is an error that tells the nearest.

    Raises:
      UserError: there is no such file, or it does not know its arguments.
    """
    path = find_config(name)
    file, _, arguments = path.partition(":")
    module = types.ModuleType("config")
    module.__file__ = file
    with importable(path):
        exec(compile(Path(file).read_bytes(), file, "exec"), module.__dict__)
        given = [arguments] if ":" in path else []
        try:
            inspect.signature(module.get_config).bind(*given)
        except TypeError as error:
            raise UserError(
                f"config: {name} does not fit its get_config ({error}); what that takes stands behind a colon"
            ) from error
        config = module.get_config(*given)
    return config.lock()


def _take_modules() -> dict[str, types.ModuleType]:
    """Takes `configs` and what lies in it out of the modules that are loaded."""
    names = [name for name in sys.modules if name.partition(".")[0] == "configs"]
    return {name: sys.modules.pop(name) for name in names}
