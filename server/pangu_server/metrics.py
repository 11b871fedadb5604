"""Prometheus metrics. vLLM's names for what it counts too, because boards and autoscalers read those; our
own `pangu_` names for memory and for what runs. Buckets reach down to milliseconds: a completion is short.

Owns its registry, so that two servers can live in one process.
"""

from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from pangu_convert.artifact import Manifest
from pangu_server.backends.seam import Backend, Counts
from pangu_server.gpu import GpuMemory
from pangu_server.timings import Timings

FINE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
COARSE_SECONDS = (1, 1.5, 2.5, 5, 7.5, 10, 15, 20, 30, 60, 120, 300)
LATENCY_SECONDS = (*FINE_SECONDS, *COARSE_SECONDS)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)

# Field of `Counts` -> name, what it is
COUNTED = {
    "prefix_queries": ("vllm:prefix_cache_queries", "Prompt tokens that were looked up in the cache."),
    "prefix_hits": ("vllm:prefix_cache_hits", "Of them those whose keys and values were there."),
    "preemptions": ("vllm:num_preemptions", "Completions put back into the queue for want of cache."),
    "drafted": ("vllm:spec_decode_num_draft_tokens", "Tokens guessed."),
    "accepted": ("vllm:spec_decode_num_accepted_tokens", "Guessed tokens that the model would have chosen."),
}


class BackendCounts(Collector):
    """What the backend counts, read at each scrape; zeros until there is one."""

    def __init__(self, model_name: str) -> None:
        self.backend: Backend | None = None
        self._model_name = model_name

    def collect(self) -> Iterator[CounterMetricFamily]:
        """A family for each count."""
        counts = self.backend.counts() if self.backend else Counts()
        for field, (name, help_text) in COUNTED.items():
            family = CounterMetricFamily(name, help_text, labels=["model_name"])
            family.add_metric([self._model_name], getattr(counts, field))
            yield family


class Metrics:
    """All metrics of one served model; each carries the label `model_name`."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of started completions.")
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self._success = self._labelled(
            "vllm:request_success",
            "Completions that ended, by reason: stop, length, abort (cancelled by the client) or error.",
            "finished_reason",
        )
        self._rejected = self._labelled(
            "pangu_requests_rejected", "Requests refused before they were queued.", "reason"
        )
        self._cancelled = self._labelled(
            "pangu_requests_cancelled",
            "Completions whose client went away (stage queued or running) or whose time was over (deadline).",
            "stage",
        )
        self.prompts_cut = self._counter(
            "pangu_prompts_cut", "Prompts around a gap that were cut: the file is longer than the context."
        )
        self.log_dropped = self._gauge(
            "pangu_log_lines_dropped", "Lines of the log that were lost because nobody read stderr."
        )
        self._running = self._gauge("vllm:num_requests_running", "Completions being generated.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Completions in the queue.")
        self._cache_usage = self._gauge(
            "vllm:kv_cache_usage_perc", "Attention cache in use, of what a full batch would hold; 1 is full."
        )
        seconds = self._seconds
        self.time_to_first_token = seconds("vllm:time_to_first_token_seconds", "Arrival to the first token.")
        self.inter_token_latency = seconds(
            "vllm:inter_token_latency_seconds", "Time between two tokens of a completion."
        )
        self._time_per_token = seconds(
            "vllm:request_time_per_output_token_seconds",
            "Mean time between the tokens of a completion, (last - first) / (tokens - 1).",
        )
        self._end_to_end = seconds("vllm:e2e_request_latency_seconds", "Arrival to the end.")
        self._queue_time = seconds("vllm:request_queue_time_seconds", "Arrival to leaving the queue.")
        self._inference_time = seconds("vllm:request_inference_time_seconds", "Leaving the queue to the end.")
        self._prefill_time = seconds(
            "vllm:request_prefill_time_seconds", "Leaving the queue to the first token."
        )
        self._decode_time = seconds("vllm:request_decode_time_seconds", "First token to the last.")
        counts = self._counts
        self._request_prompt = counts("vllm:request_prompt_tokens", "Prompt tokens of a completion.", TOKENS)
        self._request_generation = counts(
            "vllm:request_generation_tokens", "Tokens generated for a completion.", TOKENS
        )
        self._max_tokens = counts("vllm:request_params_max_tokens", "max_tokens of a request.", TOKENS)
        self._n = counts("vllm:request_params_n", "n of a request.", ROWS)
        self.batch_size = counts(
            "pangu_batch_size", "Completions computed together, each batch or step.", ROWS
        )
        self._weights = self._gauge("pangu_model_weight_bytes", "Size of the model's weights.")
        self._cache_bytes = self._gauge("pangu_kv_cache_bytes", "Attention keys and values held.")
        self._humaneval = Gauge(
            "pangu_humaneval_pass_at_k",
            "HumanEval of the served artifact as last recorded in its manifest.",
            ["model_name", "k", "quantization", "samples"],
            registry=self.registry,
        )
        self._info = Info("pangu_model", "What is served.", ["model_name"], registry=self.registry)
        self._counts_of = BackendCounts(model_name)
        self.registry.register(self._counts_of)
        self.registry.register(GpuMemory())
        ProcessCollector(registry=self.registry)  # process_resident_memory_bytes and its kin

    def watch_log(self, dropped: Callable[[], int]) -> None:
        """Read the number of lost lines of the log from this at each scrape."""
        self.log_dropped.set_function(dropped)

    def watch(self, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Read the number of running and waiting completions from these at each scrape."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)

    def loaded(self, manifest: Manifest, backend: Backend) -> None:
        """Publish what runs."""
        info = backend.info
        self._counts_of.backend = backend
        self._weights.set(info.weight_bytes)
        self._cache_bytes.set_function(lambda: backend.cache_use().held_bytes)
        self._cache_usage.set_function(lambda: backend.cache_use().used_fraction)
        self._info.labels(self._model_name).info(
            {
                "backend": info.name,
                "engine": info.engine,
                "quantization": manifest.quantization,
                "compute_type": info.compute_type,
                "kernel": info.kernel or "",
                "device": info.device,
                "threads": str(info.threads),
                "artifact_sha256": manifest.files[manifest.weight_files[0]].sha256,
            }
        )
        humaneval = manifest.scores.get("humaneval", {})
        for k, value in humaneval.get("pass_at_k", {}).items():
            samples = str(humaneval["samples"])
            self._humaneval.labels(self._model_name, k, manifest.quantization, samples).set(value)

    def submitted(self, n: int, max_tokens: int) -> None:
        """Count a request's parameters."""
        self._n.observe(n)
        self._max_tokens.observe(max_tokens)

    def started(self, timings: Timings) -> None:
        """Count a completion that left the queue."""
        _observe(self._queue_time, timings.queue_seconds)
        self.prompt_tokens.inc(timings.prompt_tokens)

    def first_token(self, seconds: float) -> None:
        """Count a completion's first token, `seconds` after its arrival."""
        self.time_to_first_token.observe(seconds)
        self.generation_tokens.inc()

    def next_token(self, seconds: float) -> None:
        """Count a later token, `seconds` after the one before."""
        self.inter_token_latency.observe(seconds)
        self.generation_tokens.inc()

    def ended(self, timings: Timings, reason: str, *, cancelled: str | None) -> None:
        """Count a completion that was admitted; `cancelled` names the stage at which it was."""
        self._success.labels(self._model_name, reason).inc()
        if cancelled is not None:
            self._cancelled.labels(self._model_name, cancelled).inc()
        if reason not in ("stop", "length"):
            return  # half a completion would spoil the distributions
        self._end_to_end.observe(timings.end_to_end_seconds)
        self._request_prompt.observe(timings.prompt_tokens)
        self._request_generation.observe(timings.completion_tokens)
        _observe(self._inference_time, timings.inference_seconds)
        _observe(self._prefill_time, timings.prefill_seconds)
        _observe(self._decode_time, timings.decode_seconds)
        _observe(self._time_per_token, timings.time_per_token_seconds)

    def rejected(self, reason: str) -> None:
        """Count a request that was not admitted."""
        self._rejected.labels(self._model_name, reason).inc()

    def exposition(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, ["model_name"], registry=self.registry).labels(self._model_name)

    def _labelled(self, name: str, help_text: str, label: str) -> Counter:
        return Counter(name, help_text, ["model_name", label], registry=self.registry)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, ["model_name"], registry=self.registry).labels(self._model_name)

    def _seconds(self, name: str, help_text: str) -> Histogram:
        return self._counts(name, help_text, LATENCY_SECONDS)

    def _counts(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, help_text, ["model_name"], buckets=buckets, registry=self.registry)
        return histogram.labels(self._model_name)


def _observe(histogram: Histogram, seconds: float | None) -> None:
    """Count a duration that has come to its end."""
    if seconds is not None:
        histogram.observe(seconds)
