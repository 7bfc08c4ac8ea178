"""What a server counts and measures, in the words of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.latency = Histogram(
            "fxmerge_request_seconds", "Seconds from a request read to its answer, by task.", ("model", "task"),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.requests = Counter(
            "fxmerge_requests", "Requests answered, by HTTP status.", ("model", "protocol", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.queue = Gauge("fxmerge_queue_requests", "Requests that wait.", ("model",), registry=self.registry)
        self.rows = Histogram(
            "fxmerge_batch_rows", "Rows a batch has.", ("model",), buckets=ROWS, registry=self.registry
        )
        self.reloads = Counter(
            "fxmerge_reloads", "Files that were replaced, taken or refused.", ("model", "result"),
            registry=self.registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """The page of /metrics."""
        return generate_latest(self.registry)
