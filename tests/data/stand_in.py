"""A bucket on this machine as Google's client asks for it: by ranges; it waits, refuses and cuts when it is told to."""

import contextlib
import http.server
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

_PIECE = 16_384


class StandIn:
    """What was asked, as (name, first byte), and what was sent.

    Attributes:
      delay: seconds before each answer.
      rate: bytes a second of each answer.
      faults: what becomes of the next requests: "refuse" (503), "cut" (half of the answer) or "" (all is well).
    """

    def __init__(self, objects: Callable[[str], bytes | None]):
        self.objects, self.asked, self.sent = objects, [], 0
        self.delay, self.rate, self.faults, self.counting = 0.0, float("inf"), [], threading.Lock()

    def forget(self) -> None:
        self.asked, self.sent = [], 0


@contextlib.contextmanager
def serve(stand_in: StandIn) -> Iterator[str]:
    """Serves until exit; gives the address for CLOUD_STORAGE_EMULATOR_ENDPOINT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            bucket, name = self.path.removeprefix("/storage/v1/b/").split("?")[0].split("/o/")
            data = stand_in.objects(f"{bucket}/{urllib.parse.unquote(name)}")
            time.sleep(stand_in.delay)
            fault = stand_in.faults.pop(0) if stand_in.faults else ""
            begin, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
            stand_in.asked.append((name, int(begin or -int(end))))
            if fault == "refuse" or data is None:
                self.answer(503 if fault else 404, b"{}")
                return
            view = memoryview(data)
            part = view[int(begin) :] if begin else view[-int(end) :]
            self.answer(206, part, f"bytes {len(data) - len(part)}-{len(data) - 1}/{len(data)}", fault == "cut")

        def answer(self, status, body, span=None, cut=False):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if span:
                self.send_header("Content-Range", span)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client has what it wanted
                for at in range(0, len(body) // (2 if cut else 1), _PIECE):
                    time.sleep(_PIECE / stand_in.rate)
                    count = self.wfile.write(body[at : at + _PIECE])
                    with stand_in.counting:
                        stand_in.sent += count
            self.close_connection = cut

        def handle(self):
            with contextlib.suppress(ConnectionError):
                super().handle()

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads, request_queue_size = True, 128  # of 5 that wait the next one would be dropped for a second

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
