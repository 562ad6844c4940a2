"""Names as the command line spells them: lists of them, and a checkpoint's with its language."""

from pathlib import Path

from ml_collections import ConfigDict


def split_names(joined: str) -> list[str]:
    """The parts of a list that is joined by commas; empty ones are none."""
    return [name.strip() for name in joined.split(",") if name.strip()]


def split_language(name: str) -> tuple[str, str]:
    """A checkpoint's name and the language after its last `#`; empty where none is named."""
    folder, mark, language = name.rpartition("#")
    return (folder, language) if mark and not Path(name).expanduser().is_dir() else (name, "")


def name_language(name: str, language: str) -> str:
    """The inverse of `split_language`."""
    return f"{name}#{language}" if language else name


def in_language(config: ConfigDict) -> ConfigDict:
    """A config whose `language` is part of the checkpoint's name, which is all that readers of checkpoints look at."""
    language = config.get("language")
    if not language:
        return config
    config = config.copy_and_resolve_references()
    config.init_from, config.language = name_language(config.init_from, language), ""
    return config
