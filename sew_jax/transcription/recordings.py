"""Recordings: the files, folders and standard input that a command line names, and what Python gives."""

import os
import stat
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sew_jax.data import audio
from sew_jax.data.audio import AudioError
from sew_jax.data.audio_names import audio_kinds, is_left_behind
from sew_jax.data.entries import in_threads, is_audio_file
from sew_jax.data.problems import Problem
from sew_jax.errors import UserError
from sew_jax.names import split_names
from sew_jax.rates import SAMPLE_RATE
from sew_jax.storage import exists, is_folder, patient, raise_if_away

STDIN = "-"


class Recording(NamedTuple):
    """Audio of one file, or as much as one."""

    name: str  # as the user knows it: its path, or - for standard input
    stem: str  # of files that belong to it: its path below the folder that was named, without the suffix
    data: str | bytes | np.ndarray  # path, a file's bytes, or int16 samples at 16 kHz
    samples: int  # at 16 kHz

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE


class Selection(NamedTuple):
    """Recordings in order; what cannot be used; and whether one file alone was asked for."""

    recordings: list[Recording]
    problems: list[Problem]
    alone: bool


def find_recordings(named: str) -> Selection:
    """The recordings that `named` stands for: files, folders (all audio below, links to folders aside) and `-`.

    Several are joined by commas.

    A path with a comma in it is understood where it is all that is named. Of folders' files those with a suffix of
    audio count, other files are tried as they are named.

    Raises:
      UserError: nothing is named.
    """
    names = [named] if exists(named) else split_names(named)
    if not names:
        raise UserError(
            "audio is empty; set --config.audio to files and folders, joined by commas, or to - (standard input)"
        )
    wanted, problems = [], []  # (name, stem, data)
    for name in names:
        if name == STDIN:
            wanted.append((name, "stdin", sys.stdin.buffer.read()))
        elif is_folder(name):
            try:
                below = _audio_below(name)
            except OSError as error:
                problems.append(Problem(name, f"cannot be listed ({os.strerror(error.errno).lower()})"))
                continue
            if not below:
                problems.append(Problem(name, f"holds no audio files ({audio_kinds()})"))
            wanted += [(path, os.path.splitext(os.path.relpath(path, name))[0], path) for path in below]
        else:
            wanted.append((name, os.path.splitext(os.path.basename(name))[0], name))
    recordings: list[Recording] = []
    for one in in_threads(_measured, wanted):
        if isinstance(one, Problem):
            problems.append(one)
        else:
            recordings.append(one)
    return Selection(recordings, problems, alone=len(names) == 1 and not is_folder(names[0]))


@patient
def _audio_below(top: str) -> list[str]:
    def stop(error: OSError):
        raise error

    paths = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(top, onerror=stop)
        for name in names
        if not any(map(is_left_behind, (*os.path.relpath(folder, top).split(os.sep), name)))
    ]
    return sorted(filter(is_audio_file, paths))


@patient
def _is_pipe(path: str) -> bool:
    return stat.S_ISFIFO(os.stat(path).st_mode)


def _measured(wanted: tuple[str, str, str | bytes]) -> Recording | Problem:
    name, stem, data = wanted
    try:
        if isinstance(data, str) and _is_pipe(data):  # can be read once, and not sought in
            data = Path(data).read_bytes()
        return Recording(name, stem, data, audio.probe(data))
    except FileNotFoundError:
        return Problem(name, "does not exist")
    except OSError as error:
        raise_if_away(error)
        return Problem(name, f"cannot be read ({error.strerror})")
    except AudioError as error:
        return Problem(name, str(error))
