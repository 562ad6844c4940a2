"""A bucket on this machine as Google's clients speak to it: it waits, refuses and cuts when it is told to.

The part of the JSON API that google-cloud-cpp (array_record), TensorStore (Orbax), gcsfs and google-cloud-storage use.
"""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

_PIECE = 16_384


class StandIn:
    """What was asked, as (name, first byte), and what was sent.

    Args:
      objects: "BUCKET/NAME" -> bytes, of a bucket that is only read; without it one that is written to.

    Attributes:
      store: "BUCKET/NAME" -> (generation, bytes), of a bucket that is written to.
      delay: seconds before each answer.
      rate: bytes a second of each answer.
      faults: what becomes of the next requests: "refuse" (503), "cut" (half of the answer) or "" (all is well).
      refused: share of requests that are refused beside them, drawn at random.
      away: whether all are refused; gone: whether connections are closed instead; forbidden: else the status of all.
      methods: how often each method was asked for.
    """

    def __init__(self, objects: Callable[[str], bytes | None] | None = None):
        self.store, self.lock = {}, threading.Lock()
        self.objects, self.asked, self.sent = objects or self.read, [], 0
        self.delay, self.rate, self.faults, self.counting = 0.0, float("inf"), [], threading.Lock()
        self.refused, self.away, self.gone, self.forbidden = 0.0, False, False, 0
        self.methods, self.uploads = {}, {}
        self.generations, self.random = itertools.count(1), random.Random(0)

    def forget(self) -> None:
        self.asked, self.sent = [], 0

    def read(self, name: str) -> bytes | None:
        return self.store[name][1] if name in self.store else None

    def names(self, prefix: str = "") -> list[str]:
        """Of the objects below `prefix`, without it."""
        return sorted(name.removeprefix(prefix) for name in list(self.store) if name.startswith(prefix))

    def fault(self) -> str:
        with self.lock:
            if self.away or (self.refused and self.random.random() < self.refused):
                return "refuse"
            return self.faults.pop(0) if self.faults else ""

    def write(self, name: str, data: bytes, generation: str | None) -> bool:
        """Whether the object that is replaced is of the generation that is asked for (0: none is)."""
        with self.lock:
            if generation is not None and str(self.store.get(name, (0,))[0]) != generation:
                return False
            self.store[name] = next(self.generations), data
            return True

    def about(self, name: str) -> dict[str, str]:
        """The resource of an object."""
        generation, data = self.store[name]
        bucket, _, key = name.partition("/")
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        about = {"kind": "storage#object", "bucket": bucket, "name": key, "size": str(len(data)), "md5Hash": digest}
        when = "2026-01-01T00:00:00.000Z"
        return about | {"generation": str(generation), "metageneration": "1", "timeCreated": when, "updated": when}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def do_GET(self):
        self.begin()
        parts, query = self.parts, self.query
        if parts[-2:-1] == ["b"]:
            return self.say({"kind": "storage#bucket", "name": parts[-1], "location": "NOWHERE"})
        bucket, name = parts[parts.index("b") + 1], parts[-1] if parts[-2] == "o" else ""
        if not name:
            return self.list(bucket, query)
        path = f"{bucket}/{name}"
        if "alt" not in query and self.stand_in.store:
            return self.say(self.stand_in.about(path)) if path in self.stand_in.store else self.answer(404, b"{}")
        data = self.stand_in.objects(path)
        first, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        self.stand_in.asked.append((urllib.parse.quote(name, safe=""), int(first or -int(last))))
        if self.fault == "refuse" or data is None:
            return self.answer(503 if self.fault else 404, b"{}")
        generation = str(self.stand_in.store.get(path, (1,))[0])
        if query.get("ifGenerationNotMatch") == generation:
            return self.answer(304, b"")
        view = memoryview(data)
        end = int(last) + 1 if first and last else None
        part = view[int(first) : end] if first else view[-int(last) :]
        begin = int(first) if first else len(data) - len(part)
        span = f"bytes {begin}-{begin + len(part) - 1}/{len(data)}" if len(part) else None
        self.answer(206 if span and "Range" in self.headers else 200, part, span, generation)

    def do_HEAD(self):
        self.begin()
        self.answer(404, b"")

    def list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], {}
        for name in self.stand_in.names(f"{bucket}/"):
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name:
                continue
            if name >= query.get("endOffset", "\U0010ffff"):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes[prefix + rest.partition(delimiter)[0] + delimiter] = None
            else:
                items.append(self.stand_in.about(f"{bucket}/{name}"))
        self.say({"kind": "storage#objects", "items": items, "prefixes": list(prefixes)})

    def do_POST(self):
        body = self.begin()
        parts, query = self.parts, self.query
        bucket = parts[parts.index("b") + 1]
        if "upload_id" in query:
            return self.resume(body)
        if "rewriteTo" in parts:
            at = parts.index("rewriteTo")
            data, target = self.stand_in.read(f"{bucket}/{parts[at - 1]}"), f"{parts[at + 2]}/{parts[at + 4]}"
            if data is None:
                return self.answer(404, b"{}")
            self.stand_in.write(target, data, None)
            return self.say({"done": True, "resource": self.stand_in.about(target)})
        name, data = query.get("name"), body
        if query["uploadType"] == "multipart":
            _, described, data = re.split(rb"\r?\n\r?\n", body, maxsplit=2)
            name = json.JSONDecoder().raw_decode(described.decode())[0]["name"]
            data = data.rpartition(b"\n--")[0]
        elif query["uploadType"] == "resumable":
            upload = f"upload{next(self.stand_in.generations)}"
            self.stand_in.uploads[upload] = (f"{bucket}/{name}", b"")
            host = self.headers["Host"]
            return self.answer(200, b"{}", location=f"http://{host}/upload/storage/v1/b/{bucket}/o?upload_id={upload}")
        self.put(f"{bucket}/{name}", data, query)

    def put(self, path, data, query):
        if self.stand_in.write(path, data, query.get("ifGenerationMatch")):
            return self.say(self.stand_in.about(path))
        self.answer(412, b'{"error": {"code": 412, "message": "generation"}}')

    def do_PUT(self):
        self.resume(self.begin())

    def resume(self, body):
        """A piece of an upload in several; the last one tells the size of all."""
        path, before = self.stand_in.uploads[self.query["upload_id"]]
        whole = before + body
        self.stand_in.uploads[self.query["upload_id"]] = (path, whole)
        if self.headers["Content-Range"].endswith("/*"):
            return self.answer(308, b"", reached=len(whole))
        self.put(path, whole, self.query)

    def do_DELETE(self):
        self.begin()
        path = f"{self.parts[self.parts.index('b') + 1]}/{self.parts[-1]}"
        generation = self.query.get("ifGenerationMatch")
        with self.stand_in.lock:
            there = path in self.stand_in.store
            fits = generation is None or (there and str(self.stand_in.store[path][0]) == generation)
            if there and fits:
                del self.stand_in.store[path]
        self.answer(204 if there and fits else 412 if there else 404, b"" if there and fits else b"{}")

    def begin(self):
        """Reads the request, waits, and refuses it where that is its lot."""
        url = urllib.parse.urlsplit(self.path)
        self.parts = [urllib.parse.unquote(part) for part in url.path.split("/")]
        self.query = dict(urllib.parse.parse_qsl(url.query))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.stand_in.counting:
            self.stand_in.methods[self.command] = self.stand_in.methods.get(self.command, 0) + 1
        time.sleep(self.stand_in.delay)
        if self.stand_in.gone:
            raise ConnectionAbortedError
        self.fault = self.stand_in.fault()
        if self.stand_in.forbidden:
            self.fault = ""
            self.answer(self.stand_in.forbidden, b'{"error": {"code": 403, "message": "no"}}')
            raise ConnectionAbortedError
        if self.fault == "refuse" and "alt" not in self.query:
            self.answer(503, b'{"error": {"code": 503, "message": "come again"}}')
            raise ConnectionAbortedError
        return body

    def say(self, value):
        self.answer(200, json.dumps(value).encode(), kind="application/json")

    def answer(self, status, body, span=None, generation=None, kind="application/octet-stream", **more):
        self.send_response(status)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        if span:
            self.send_header("Content-Range", span)
        if generation:
            self.send_header("x-goog-generation", generation)
        if "location" in more:
            self.send_header("Location", more["location"])
        if more.get("reached"):
            self.send_header("Range", f"bytes=0-{more['reached'] - 1}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.fault == "cut"
        with contextlib.suppress(ConnectionError):  # the client has what it wanted
            for at in range(0, len(body) // (2 if cut else 1), _PIECE):
                time.sleep(_PIECE / self.stand_in.rate)
                count = self.wfile.write(body[at : at + _PIECE])
                with self.stand_in.counting:
                    self.stand_in.sent += count
        self.close_connection = cut

    def handle(self):
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128  # of 5 that wait the next one would be dropped for a second


@contextlib.contextmanager
def serve(stand_in: StandIn) -> Iterator[str]:
    """Serves until exit; gives the address for CLOUD_STORAGE_EMULATOR_ENDPOINT, and for those of `variables`."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": stand_in}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def variables(address: str) -> dict[str, str]:
    """What makes gcsfs, google-cloud-storage and TensorStore ask the stand-in instead of Google."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks by gRPC what kind of bucket it is
        "FSSPEC_GCS_TOKEN": "anon",
        "FSSPEC_GS_TOKEN": "anon",
    }
