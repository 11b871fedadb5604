"""Prometheus metrics. vLLM's names for what it counts too, because boards and autoscalers read those; our
own `pangu_` names for memory and for what runs. Buckets reach down to milliseconds: a completion is short.

Owns its registry, so that two servers can live in one process.
"""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from pangu_server.backends import BackendInfo

FINE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
COARSE_SECONDS = (1, 1.5, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120, 300)
LATENCY_SECONDS = (*FINE_SECONDS, *COARSE_SECONDS)


class Metrics:
    """All metrics of one served model; each carries the label `model_name`."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of started requests.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._success = Counter(
            "vllm:request_success",
            "Requests that ended, by reason: stop, length, abort (cancelled by the client) or error.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._rejected = Counter(
            "pangu_requests_rejected",
            "Requests refused before they were queued, by reason.",
            ["model_name", "reason"],
            registry=self.registry,
        )
        self._cancelled = Counter(
            "pangu_requests_cancelled",
            "Requests whose client went away, by stage: queued or running.",
            ["model_name", "stage"],
            registry=self.registry,
        )
        self.time_to_first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival of the request to its first token."
        )
        self.inter_token_latency = self._histogram(
            "vllm:inter_token_latency_seconds", "Time between two tokens of a request."
        )
        self.end_to_end = self._histogram(
            "vllm:e2e_request_latency_seconds", "Arrival of the request to its last token."
        )
        self.queue_time = self._histogram("vllm:request_queue_time_seconds", "Time spent in the queue.")
        self._running = self._gauge("vllm:num_requests_running", "Requests being generated.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Requests in the queue.")
        self._weights = self._gauge("pangu_model_weight_bytes", "Size of the model's weights.")
        self._info = Info("pangu_model", "What is served.", ["model_name"], registry=self.registry)
        ProcessCollector(registry=self.registry)  # process_resident_memory_bytes and its kin

    def watch(self, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Read the number of running and waiting requests from these at each scrape."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def loaded(self, info: BackendInfo, *, quantization: str, artifact_sha256: str) -> None:
        """Publish what runs."""
        self._weights.set(info.weight_bytes)
        self._info.labels(self._model_name).info(
            {
                "backend": info.name,
                "quantization": quantization,
                "compute_type": info.compute_type,
                "kernel": info.kernel or "",
                "device": info.device,
                "threads": str(info.threads),
                "artifact_sha256": artifact_sha256,
            }
        )

    def ended(self, reason: str) -> None:
        """Count a request that was admitted."""
        self._success.labels(self._model_name, reason).inc()

    def cancelled(self, stage: str) -> None:
        """Count a request whose client went away."""
        self._cancelled.labels(self._model_name, stage).inc()

    def rejected(self, reason: str) -> None:
        """Count a request that was not admitted."""
        self._rejected.labels(self._model_name, reason).inc()

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, ["model_name"], registry=self.registry).labels(self._model_name)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, ["model_name"], registry=self.registry).labels(self._model_name)

    def _histogram(self, name: str, help_text: str) -> Histogram:
        histogram = Histogram(
            name, help_text, ["model_name"], buckets=LATENCY_SECONDS, registry=self.registry
        )
        return histogram.labels(self._model_name)
