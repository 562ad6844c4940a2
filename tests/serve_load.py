"""Many clients at once against a server of its own: is anything lost or mixed up, does memory grow, how fast is it.

  python -m tests.serve_load --init_from=runs/demo/finetune --audio=recordings

Run by hand. It asks each file alone first; what the same file reads later, among others, must be that text. The last
line says whether all held; the exit status is 1 where something did not.
"""

import argparse
import concurrent.futures
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PATH = "/v1/audio/transcriptions"


class Server:
    """A process, from when it is ready."""

    def __init__(self, arguments):
        command = [sys.executable, "-m", "sew_jax.main", "--config=configs/serve.py", "--config.port=0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.lines = []
        for line in self.process.stdout:
            print("   |", line, end="", flush=True)
            self.lines.append(line)
            if found := re.match(r"ready .*:(\d+);", line):
                self.port = int(found[1])
                break
        else:
            sys.exit("the server did not start")
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def ask(self, data, name="a.flac", **fields):
        """(status, headers, body, seconds)."""
        parts = [
            f'Content-Disposition: form-data; name="{key}"\r\n\r\n{value}'.encode() for key, value in fields.items()
        ]
        parts.append(f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode() + data)
        body = b"".join(b"--BOUNDARY\r\n" + part + b"\r\n" for part in parts) + b"--BOUNDARY--\r\n"
        begin = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request("POST", PATH, body, {"Content-Type": "multipart/form-data; boundary=BOUNDARY"})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, answer.headers, json.loads(text), time.perf_counter() - begin
        finally:
            connection.close()

    def resident(self):
        """MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def metric(self, name):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        return float(re.search(rf"^{re.escape(name)} (\S+)", connection.getresponse().read().decode(), re.M)[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init_from", required=True, help="as --config.init_from")
    parser.add_argument("--audio", required=True, type=Path, help="a folder with FLAC or WAV files")
    parser.add_argument("--files", type=int, default=20, help="how many of them are asked for")
    parser.add_argument("--settings", default="s2q1k1")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=600)
    options = parser.parse_args()
    paths = [path for path in sorted(options.audio.rglob("*")) if path.suffix in (".flac", ".wav")]
    files = [path.read_bytes() for path in paths[: options.files]]
    server = Server([f"--config.init_from={options.init_from}", f"--config.settings={options.settings}"])
    try:
        held = run(server, files, options)
    finally:
        server.process.kill()
    print("all held" if held else "SOMETHING DID NOT HOLD")
    return not held


def run(server, files, options):
    settings = options.settings.split(",")
    alone = {(i, s): server.ask(file, setting=s)[2]["text"] for i, file in enumerate(files) for s in settings}
    texts = sum(map(bool, alone.values()))
    print(f"{len(alone)} texts of files alone, {texts} of them with words; {server.resident():.0f} MiB")
    held = texts > 0

    def one(number):
        i, setting = number % len(files), settings[number % len(settings)]
        status, headers, body, seconds = server.ask(files[i], setting=setting)
        return status, headers, status == 200 and body["text"] == alone[i, setting], seconds

    def many(clients, requests):
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(one, range(requests)))
        return answers, time.perf_counter() - begin

    many(options.clients, 2 * options.clients)  # threads and buffers are there
    before, audio_before = server.resident(), server.metric(f'sew_jax_audio_seconds_total{{setting="{settings[0]}"}}')
    memory = [round(before)]
    for _ in range(3):
        answers, seconds = many(options.clients, options.requests)
        right = sum(answer[2] for answer in answers)
        times = sorted(answer[3] for answer in answers)
        percentiles = ", ".join(f"p{p} {times[min(len(times) * p // 100, len(times) - 1)]:.2f} s" for p in (50, 95, 99))
        memory.append(round(server.resident()))
        print(
            f"{options.clients} clients: {right} of {len(answers)} right, {len(answers) / seconds:.1f}/s, {percentiles}"
        )
        held = held and right == len(answers)
    audio = server.metric(f'sew_jax_audio_seconds_total{{setting="{settings[0]}"}}') - audio_before
    print(f"memory before and after each round: {memory} MiB; {audio:.0f} s of audio at {settings[0]}")
    held = held and memory[-1] < 1.05 * before + 20
    answers, _ = many(3 * options.clients, 6 * options.clients)
    counts = {status: sum(answer[0] == status for answer in answers) for status in (200, 429)}
    told = all("Retry-After" in answer[1] for answer in answers if answer[0] == 429)
    print(f"{3 * options.clients} clients: {counts}, Retry-After {told}, {server.resident():.0f} MiB")
    held = held and sum(counts.values()) == len(answers) and counts[429] > 0 and told
    held = held and sum(answer[2] for answer in answers) == counts[200]
    with concurrent.futures.ThreadPoolExecutor(options.clients) as pool:
        last = [pool.submit(one, number) for number in range(options.clients)]
        while server.metric("sew_jax_accepted") < options.clients // 2:
            pass
        server.process.send_signal(signal.SIGTERM)
        ended = [future.exception() or future.result() for future in last]
    right = sum(not isinstance(answer, Exception) and answer[2] for answer in ended)
    late = sum(isinstance(answer, ConnectionError) or (type(answer) is tuple and answer[0] == 503) for answer in ended)
    status = server.process.wait(60)
    print(f"SIGTERM: {right} answered, {late} came too late, exit status {status}")
    return held and right + late == len(ended) and right >= options.clients // 2 and status == 0


if __name__ == "__main__":
    sys.exit(main())
