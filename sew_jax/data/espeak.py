"""Speech from text by libespeak-ng (github.com/espeak-ng/espeak-ng), through ctypes.

The library is GPL-3. It is not part of this package: the wheel `espeakng-loader` brings it and its voices, and nothing
but `demo_corpus.py` imports this file.
"""

import _ctypes
import ctypes
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sew_jax.errors import UserError

# Constants of speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_unload = getattr(_ctypes, "FreeLibrary" if sys.platform == "win32" else "dlclose")


def _broken(reason: object) -> UserError:
    return UserError(
        f"the demo speech needs libespeak-ng, which does not work here ({reason}): "
        "pip install --force-reinstall espeakng-loader, or set data= to recorded speech"
    )


class Synthesiser:
    """Speaks, one text after another; each thread needs one of its own.

    The library's state is in static variables, which no call resets: the position of the pitch flutter, the roughness'
    cycle counter and the gain control. So each synthesiser loads a copy of the file, and loads it anew for every text;
    the noise generator is seeded from the clock and seeded again here.

    Args:
      folder: where the copy goes; it must be empty, and stay as long as the synthesiser.

    Raises:
      UserError: the library is missing.
    """

    def __init__(self, folder: Path):
        try:
            import espeakng_loader

            self._data = Path(espeakng_loader.get_data_path())
            self._library = shutil.copy(espeakng_loader.get_library_path(), folder)
        except (ImportError, RuntimeError) as error:
            raise _broken(error) from error

    def __call__(self, text: str, voice: str, rate: int, pitch: int, pitch_range: int) -> tuple[np.ndarray, int]:
        """A pure function of its arguments, at about 4 ms a call plus 1/2000 of the speech's duration.

        Args:
          text: what to say; write words in lower case, for capitals may be spelt out.
          voice: an espeak-ng language, with `+VARIANT` for another timbre, such as "en-us+f2".
          rate: words per minute, 80 to 450.
          pitch: base pitch, 0 to 99; 50 is the voice's own.
          pitch_range: liveliness of the intonation, 0 (monotone) to 99; 50 is the voice's own.

        Returns:
          int16 samples, shape (samples,), and the sample rate in Hz (22050).

        Raises:
          UserError: the library or the voice does not work.
        """
        # The library says nothing of an unknown variant and speaks with the plain voice.
        _, plus, variant = voice.partition("+")
        if plus and not (self._data / "voices" / "!v" / variant).is_file():
            raise _broken(f"it has no voice variant {variant!r}")

        chunks: list[bytes] = []

        @_Callback
        def collect(samples, count, _events):
            if samples and count > 0:
                chunks.append(ctypes.string_at(samples, 2 * count))
            return 0

        utf8 = text.encode() + b"\0"
        try:
            with self._loaded() as (lib, sample_rate):
                lib.espeak_SetSynthCallback(collect)
                lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
                status = [lib.espeak_SetVoiceByName(os.fsencode(voice))]
                for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
                    status.append(lib.espeak_SetParameter(parameter, value, 0))
                status.append(lib.espeak_Synth(utf8, ctypes.c_size_t(len(utf8)), 0, 0, 0, _CHARS_UTF8, None, None))
        except (OSError, AttributeError) as error:
            raise _broken(error) from error
        if any(status):
            raise _broken(f"voice {voice!r}, status codes {status}")
        return np.frombuffer(b"".join(chunks), np.int16), sample_rate

    @contextmanager
    def _loaded(self):
        """Loads, initialises and unloads the library, yielding it with its sample rate in Hz."""
        lib = ctypes.CDLL(self._library)
        try:
            rate = lib.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(self._data), _INITIALIZE_DONT_EXIT)
            if rate <= 0:
                raise OSError(f"it cannot read its voices at {self._data}; its limit is a path of about 150 characters")
            yield lib, rate
            lib.espeak_Terminate()
        finally:
            _unload(lib._handle)
