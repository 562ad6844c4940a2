"""What reading a prepared dataset from a bucket costs: bytes, requests and seconds of a first batch and of two epochs.

    python -m tests.data.remote_cost runs/librispeech --split=train --delay=0.03 --rate=1e8 --refused=0.05 --cut=0.05

The bucket is a process of its own on this machine, which waits `delay` seconds before each answer and sends `rate`
bytes a second. Batches of 16 are read by 16 threads. The index is read from memory, without delay.
"""

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np

from sew_jax.data.sources import open_source
from tests.data.stand_in import StandIn, serve
from tests.data.test_remote import Bucket

_BATCH, _FAULTS = 16, 1_000_000


def serve_folder(folder, options, pipe) -> None:
    """Serves until the other end closes; answers each message with (bytes sent, requests)."""
    stand_in = StandIn(lambda name: (folder / name.removeprefix("bucket/")).read_bytes())
    stand_in.delay, stand_in.rate = options.delay, options.rate
    weights = [1 - options.refused - options.cut, options.refused, options.cut]
    stand_in.faults = random.Random(0).choices(["", "refuse", "cut"], weights, k=_FAULTS)
    with serve(stand_in) as address:
        pipe.send(address)
        while pipe.recv():
            pipe.send((stand_in.sent, len(stand_in.asked)))


def measure(folder: Path, split: str, pipe) -> None:
    """Prints what each step took, of the requests that array_record made."""
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    files = fsspec.filesystem("gs")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"gs://bucket/{path.relative_to(folder)}", path.read_bytes())
    begin, before = time.monotonic(), (0, 0)

    def say(what: str) -> None:
        nonlocal begin, before
        seconds = time.monotonic() - begin
        pipe.send(True)
        now = pipe.recv()
        print(f"{what}: {seconds:.2f} s, {(now[0] - before[0]) / 1e6:.1f} MB, {now[1] - before[1]} requests")
        begin, before = time.monotonic(), now

    source, _ = open_source("gs://bucket", split, min_samples=1, need_text=False, max_bad=0)
    say(f"open, {len(source)} records")
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    batches = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
    with ThreadPoolExecutor(_BATCH) as pool:
        for what, part in (("first batch", batches[:1]), ("rest of epoch 1", batches[1:]), ("epoch 2", batches)):
            for batch in part:
                list(pool.map(source.audio, batch))
            say(what)
    pipe.send(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    for name, value in (("delay", 0.03), ("rate", 1e8), ("refused", 0.0), ("cut", 0.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve_folder, args=(options.folder, options, there), daemon=True)
    server.start()
    os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = here.recv()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SEW_JAX_CACHE"] = cache
        measure(options.folder, options.split, here)
    server.join(10)


if __name__ == "__main__":
    main()
