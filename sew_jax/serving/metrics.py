"""What a server counts, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """One set for each server, so that a process may have several."""

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU time, open files
        self.requests = Counter("sew_jax_requests", "Answers, by status", ["endpoint", "status"], registry=registry)
        self.seconds = Histogram(
            "sew_jax_request_seconds",
            "From the bytes of a file to its text, waiting for other requests' chunks included",
            ["setting"],
            registry=registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
        )
        self.audio = Counter("sew_jax_audio_seconds", "Audio that was transcribed", ["setting"], registry=registry)
        self.rows = Histogram(
            "sew_jax_batch_chunks", "Chunks of a batch", registry=registry, buckets=(1, 2, 4, 8, 16, 32)
        )
        self.accepted = Gauge("sew_jax_accepted", "Requests and streams under way or waiting", registry=registry)

    def text(self) -> bytes:
        """All, in Prometheus's text format."""
        return generate_latest(self._registry)
