"""Checkpoints of many languages, as MMS is: each has adapters, a head and a vocabulary of its own."""

import json
from pathlib import Path

from sew_jax.checkpoints.tensor_files import TensorFiles, open_tensor_file
from sew_jax.data.text_files import read_text
from sew_jax.data.tokenizer_files import VOCABULARY_FILE
from sew_jax.errors import UserError
from sew_jax.storage import is_file, raise_if_away

ENDINGS = ("safetensors", "bin")  # in the order in which transformers looks for them


def adapter_files(language: str) -> list[str]:
    """What a language's file may be called."""
    return [f"adapter.{language}.{ending}" for ending in ENDINGS]


def _known(folder: Path) -> list[str]:
    """The languages of its vocabularies, which lie there where one language's files were fetched alone, too."""
    try:
        vocabularies = json.loads(read_text(folder / VOCABULARY_FILE))
        named = [name for name, ids in vocabularies.items() if isinstance(ids, dict)]
    except (OSError, ValueError, AttributeError) as error:
        raise_if_away(error)
        named = []
    return sorted(named or {path.name.split(".")[1] for path in folder.glob("adapter.*.*")})


def with_language(files: TensorFiles, folder: Path, language: str) -> TensorFiles:
    """The tensors of a checkpoint, those of a language in the place of those that it was saved with.

    Raises:
      UserError: there is no file of that language, or it cannot be read.
    """
    found = next((folder / name for name in adapter_files(language) if is_file(folder / name)), None)
    if not found:
        known = _known(folder)
        listed = ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
        instead = f"it has {listed}" if known else "it has no language's, so name none"
        raise UserError(f"language: {folder} has no {adapter_files(language)[0]}; {instead}")
    own = open_tensor_file(found)

    def read(names):
        wanted = set(names)
        return files.read(wanted - own.headers.keys()) | own.read(wanted & own.headers.keys())

    return TensorFiles({**files.headers, **own.headers}, read)
