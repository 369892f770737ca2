"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

#: Seconds that a request may take.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

#: Stands for a model or signature that does not exist: who asks must not be able to make up rows.
UNKNOWN = "unknown"


class Metrics:
    """Counters of one server, in a registry of its own.

    Args:
        queue_depth: Tells how many requests wait.
        running: Tells how many are being computed.
        versions: Tells how many model versions are available.
    """

    def __init__(
        self,
        queue_depth: Callable[[], float],
        running: Callable[[], float],
        versions: Callable[[], float],
    ) -> None:
        self.registry = CollectorRegistry()
        labels = ("model", "signature", "protocol")
        self._requests = Counter(
            "tfcovid_requests",
            "Predictions that were asked for.",
            (*labels, "code"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "tfcovid_request_seconds",
            "Seconds from a request to its answer.",
            labels,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "tfcovid_batch_rows",
            "Rows that were computed together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.scans = Counter(
            "tfcovid_scans",
            "Scans that were asked for, by HTTP status.",
            ("code",),
            registry=self.registry,
        )
        Gauge("tfcovid_queue_depth", "Requests that wait.", registry=self.registry).set_function(
            queue_depth
        )
        Gauge(
            "tfcovid_running", "Requests that are being computed.", registry=self.registry
        ).set_function(running)
        Gauge(
            "tfcovid_model_versions_available",
            "Model versions that are served.",
            registry=self.registry,
        ).set_function(versions)

    def count(self, model: str, signature: str, protocol: str, code: str, seconds: float) -> None:
        """Count a prediction.

        Args:
            model: Name of a served model, or `UNKNOWN`.
            signature: Name of a signature of it, or `UNKNOWN`.
            protocol: "rest" or "grpc".
            code: HTTP status, or gRPC's name of the code.
            seconds: Time from the request to its answer.
        """
        self._requests.labels(model, signature, protocol, code).inc()
        self._seconds.labels(model, signature, protocol).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
