"""Prometheus metrics.

Names, labels and buckets that begin with `vllm:` are vLLM's, so that dashboards, routers and
scalers made for it work; only those that we can fill truthfully are there. Their latency buckets
begin at 0.3 s, so the same times stand under `mainspring_` in finer ones.

Times are the server's: a request arrives with its last byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from mainspring.telemetry.record import Record
from mainspring.types import EngineStats

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = ("model_name", "engine")
ENGINE = "0"
"""Each model has one engine."""

FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
FINE = (
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 20.0, 50.0, 100.0, 200.0, 500.0,
)  # fmt: skip
TOKENS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000,
)  # fmt: skip
CHOICES = (1, 2, 5, 10, 20)

# name, help, buckets
HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "Arrival to first token.", FIRST_TOKEN),
    ("vllm:inter_token_latency_seconds", "Between successive outputs of a choice.", TOKEN),
    ("vllm:request_time_per_output_token_seconds", "Decode time over tokens.", TOKEN),
    ("vllm:e2e_request_latency_seconds", "Arrival to last token.", LATENCY),
    ("vllm:request_queue_time_seconds", "Queued to admitted.", LATENCY),
    ("vllm:request_prefill_time_seconds", "Admitted to first token.", LATENCY),
    ("vllm:request_decode_time_seconds", "First to last token.", LATENCY),
    ("vllm:request_inference_time_seconds", "Admitted to last token.", LATENCY),
    ("vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS),
    ("vllm:request_generation_tokens", "Output tokens of a request.", TOKENS),
    ("vllm:request_params_n", "The n of a request.", CHOICES),
    ("vllm:request_params_max_tokens", "The max_tokens of a request.", TOKENS),
    ("mainspring_first_token_seconds", "Arrival to first token.", FINE),
    ("mainspring_token_gap_seconds", "Between successive outputs of a choice.", FINE),
    ("mainspring_request_seconds", "Arrival to last token.", FINE),
    ("mainspring_tokenize_seconds", "Arrival to tokenized.", FINE),
    ("mainspring_queue_seconds", "Queued to admitted.", FINE),
    ("mainspring_prefill_seconds", "Admitted to first token.", FINE),
    ("mainspring_decode_seconds", "First to last token.", FINE),
)

# name, help, value of a model's stats
GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("vllm:num_requests_running", "Sequences being computed.", lambda s: s.running),
    ("vllm:num_requests_waiting", "Sequences waiting.", lambda s: s.waiting),
    (
        "vllm:kv_cache_usage_perc",
        "Share of KV cache blocks held by running sequences, 0 to 1.",
        lambda s: s.blocks_used / s.blocks if s.blocks else 0.0,
    ),
    ("mainspring_kv_blocks", "KV cache blocks in all.", lambda s: s.blocks),
    (
        "mainspring_kv_blocks_cached",
        "Blocks that only the prefix cache holds.",
        lambda s: s.blocks_cached,
    ),
    (
        "mainspring_prefix_memory_bytes",
        "Evicted blocks kept in memory.",
        lambda s: s.tier.memory_bytes,
    ),
    ("mainspring_prefix_disk_bytes", "Evicted blocks kept on disk.", lambda s: s.tier.disk_bytes),
)
COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("vllm:prefix_cache_queries", "Prompt tokens looked up.", lambda s: s.prompt_tokens),
    ("vllm:prefix_cache_hits", "Prompt tokens found.", lambda s: s.cached_tokens),
    ("vllm:num_preemptions", "Sequences sent back to the queue.", lambda s: s.preemptions),
    ("vllm:prompt_tokens", "Prompt tokens.", lambda s: s.prompt_tokens),
    ("vllm:prompt_tokens_cached", "Prompt tokens not computed.", lambda s: s.cached_tokens),
    ("vllm:generation_tokens", "Output tokens.", lambda s: s.output_tokens),
    ("vllm:spec_decode_num_drafts", "Steps of a sequence with guesses.", lambda s: s.drafts),
    ("vllm:spec_decode_num_draft_tokens", "Guesses computed.", lambda s: s.draft_tokens),
    ("vllm:spec_decode_num_accepted_tokens", "Right guesses.", lambda s: s.accepted_tokens),
    (
        "mainspring_draft_model_tokens",
        "Guesses computed that the draft model made.",
        lambda s: s.draft_model.tokens,
    ),
    (
        "mainspring_draft_model_accepted_tokens",
        "Right guesses of the draft model.",
        lambda s: s.draft_model.accepted,
    ),
    (
        "mainspring_draft_model_seconds",
        "Time that the draft model computed.",
        lambda s: s.draft_model.seconds,
    ),
    (
        "mainspring_prefix_evicted_blocks",
        "Cached blocks that the KV cache had no room for.",
        lambda s: s.tier.evicted_blocks,
    ),
    (
        "mainspring_prefix_memory_hits",
        "Tokens brought back from memory.",
        lambda s: s.tier.memory_tokens,
    ),
    (
        "mainspring_prefix_disk_hits",
        "Tokens brought back from disk.",
        lambda s: s.tier.disk_tokens,
    ),
    ("mainspring_steps", "Steps of the engine.", lambda s: s.steps),
)

Models = Callable[[], Iterable[tuple[str, EngineStats, int]]]
"""Of each loaded model: name, stats, restarts of its Worker."""


class _Engines:
    """Reads the gauges and counters of all engines when they are asked for."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        models = list(self._models())
        for name, text, value in GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=LABELS)
            for model, stats, _ in models:
                gauge.add_metric([model, ENGINE], value(stats))
            yield gauge
        for name, text, value in COUNTERS:
            counter = CounterMetricFamily(name, text, labels=LABELS)
            for model, stats, _ in models:
                counter.add_metric([model, ENGINE], value(stats))
            yield counter
        restarts = CounterMetricFamily(
            "mainspring_worker_restarts", "Workers started again.", labels=LABELS
        )
        for model, _, count in models:
            restarts.add_metric([model, ENGINE], count)
        yield restarts


class Metrics:
    """All metrics of one server. Labels come from served models and mounted routes only."""

    def __init__(self, models: Models) -> None:
        # A second series for each of the others, with the time of its first sample.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Engines(models))
        self._histograms = {
            name: Histogram(name, text, LABELS, buckets=buckets, registry=self._registry)
            for name, text, buckets in HISTOGRAMS
        }
        self._children: dict[str, dict[str, Histogram]] = {}
        self._success = Counter(
            "vllm:request_success",
            "Requests that reached an engine, by how they ended.",
            (*LABELS, "finished_reason"),
            registry=self._registry,
        )
        self._http = Counter(
            "http_requests",
            "HTTP requests by route and status.",
            ("handler", "method", "status"),
            registry=self._registry,
        )
        self._rejections = Counter(
            "mainspring_rejections",
            "Requests for a served model that were refused, by error code.",
            (*LABELS, "code"),
            registry=self._registry,
        )

    def add(self, record: Record) -> None:
        """Count a request that is over."""
        if not record.served:
            return
        if record.refused:
            self._rejections.labels(record.model, ENGINE, record.code).inc()
            return
        self._success.labels(record.model, ENGINE, record.outcome).inc()
        histograms = self._of(record.model)
        for name, value in _values(record):
            histograms[name].observe(value)
        for name in ("vllm:inter_token_latency_seconds", "mainspring_token_gap_seconds"):
            for gap in record.gaps:
                histograms[name].observe(gap)

    def _of(self, model: str) -> dict[str, Histogram]:
        # Looking a child up by its labels costs as much as counting in it.
        children = self._children.get(model)
        if children is None:
            children = self._children[model] = {
                name: histogram.labels(model, ENGINE)
                for name, histogram in self._histograms.items()
            }
        return children

    def add_http(self, handler: str, method: str, status: int) -> None:
        self._http.labels(handler, method, f"{status // 100}xx").inc()

    def expose(self) -> bytes:
        """The text format."""
        return generate_latest(self._registry)


def _values(record: Record) -> Iterator[tuple[str, float]]:
    yield "vllm:request_params_n", record.n
    if record.max_tokens is not None:
        yield "vllm:request_params_max_tokens", record.max_tokens
    timings, usage = record.timings, record.usage
    if timings is None:
        return
    yield "vllm:request_prompt_tokens", usage.prompt
    yield "vllm:request_generation_tokens", usage.output
    yield "vllm:time_to_first_token_seconds", timings.first_token
    yield "mainspring_first_token_seconds", timings.first_token
    yield "vllm:e2e_request_latency_seconds", timings.total
    yield "mainspring_request_seconds", timings.total
    yield "mainspring_tokenize_seconds", timings.tokenize
    yield "vllm:request_queue_time_seconds", timings.queue
    yield "mainspring_queue_seconds", timings.queue
    yield "vllm:request_prefill_time_seconds", timings.prefill
    yield "mainspring_prefill_seconds", timings.prefill
    yield "vllm:request_decode_time_seconds", timings.decode
    yield "mainspring_decode_seconds", timings.decode
    yield "vllm:request_inference_time_seconds", timings.prefill + timings.decode
    if usage.output > record.n:
        per_token = timings.decode * record.n / (usage.output - record.n)
        yield "vllm:request_time_per_output_token_seconds", per_token
