"""What reading is compared with: files decoded by soundfile. Free of all else, so that its processes start quickly."""

import itertools
import multiprocessing
import time

import soundfile


def measure_plain(paths: list[str], seconds: float, processes: int) -> dict[str, float]:
    """Hours of audio that so many processes decode in a second, and in a second of CPU time."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(_decode, [(paths, 0.1)] * processes, chunksize=1)  # starts them
        hours, spent, cpu = zip(*pool.starmap(_decode, [(paths, seconds)] * processes, chunksize=1), strict=True)
    return {"hours_per_s": sum(hours) / max(spent), "hours_per_core_s": sum(hours) / sum(cpu)}


def _decode(paths: list[str], seconds: float) -> tuple[float, float, float]:
    """(hours of audio decoded, seconds, seconds of CPU time)."""
    audio_seconds, begin, cpu = 0.0, time.perf_counter(), time.process_time()
    for path in itertools.cycle(paths):
        wave, rate = soundfile.read(path, dtype="float32")
        audio_seconds += len(wave) / rate
        if time.perf_counter() - begin > seconds:
            break
    return audio_seconds / 3600, time.perf_counter() - begin, time.process_time() - cpu
