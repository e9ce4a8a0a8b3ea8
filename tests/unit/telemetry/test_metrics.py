from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from mainspring.telemetry.metrics import FINE, FIRST_TOKEN, LATENCY, TOKEN, Metrics
from mainspring.telemetry.record import Record
from mainspring.types import Chunk, EngineStats, Finish, Timings, Usage


def record(**fields: object) -> Record:
    made = Record(
        id="1", task="chat", model="m", tenant="t", arrival=0.0, n=1, max_tokens=9, served=True
    )
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def samples(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def make(stats: EngineStats | None = None) -> Metrics:
    return Metrics(lambda: [("m", stats or EngineStats(), 2)])


def test_the_buckets_are_those_of_the_dashboards() -> None:
    assert (FIRST_TOKEN[0], FIRST_TOKEN[-1], len(FIRST_TOKEN)) == (0.001, 2560.0, 22)
    assert (TOKEN[0], TOKEN[-1], len(TOKEN)) == (0.01, 80.0, 19)
    assert (LATENCY[0], LATENCY[-1], len(LATENCY)) == (0.3, 7680.0, 21)
    for buckets in (FIRST_TOKEN, TOKEN, LATENCY, FINE):
        assert list(buckets) == sorted(set(buckets))


def test_the_engines_numbers() -> None:
    stats = EngineStats(
        running=3, waiting=2, blocks=8, blocks_used=2, prompt_tokens=100, cached_tokens=40,
        output_tokens=7, preemptions=1, drafts=4, draft_tokens=9, accepted_tokens=5,
    )  # fmt: skip
    found = samples(make(stats))
    at = "{engine=0,model_name=m}"
    assert found[f"vllm:num_requests_running{at}"] == 3
    assert found[f"vllm:num_requests_waiting{at}"] == 2
    assert found[f"vllm:kv_cache_usage_perc{at}"] == 0.25
    assert found[f"vllm:prefix_cache_queries_total{at}"] == 100
    assert found[f"vllm:prefix_cache_hits_total{at}"] == 40
    assert found[f"vllm:generation_tokens_total{at}"] == 7
    assert found[f"vllm:num_preemptions_total{at}"] == 1
    assert found[f"vllm:spec_decode_num_drafts_total{at}"] == 4
    assert found[f"vllm:spec_decode_num_draft_tokens_total{at}"] == 9
    assert found[f"vllm:spec_decode_num_accepted_tokens_total{at}"] == 5
    assert found[f"mainspring_worker_restarts_total{at}"] == 2


def test_a_request() -> None:
    metrics = make()
    made = record()
    made.add(Chunk(text="a"), 1.0)
    made.add(Chunk(text="b", finish=Finish.LENGTH), 1.5)
    made.add(
        Chunk(
            usage=Usage(prompt=5, output=3), timings=Timings(queue=0.4, first_token=0.5, decode=1.0)
        ),
        2.0,
    )
    metrics.add(made)
    found = samples(metrics)
    at = "{engine=0,model_name=m}"
    assert found["vllm:request_success_total{engine=0,finished_reason=length,model_name=m}"] == 1
    assert found[f"vllm:time_to_first_token_seconds_sum{at}"] == 0.5
    assert found[f"vllm:request_queue_time_seconds_sum{at}"] == 0.4
    assert found[f"vllm:inter_token_latency_seconds_sum{at}"] == 0.5
    assert found[f"vllm:request_time_per_output_token_seconds_sum{at}"] == 0.5
    assert found[f"mainspring_queue_seconds_count{at}"] == 1
    assert found[f"vllm:request_params_max_tokens_sum{at}"] == 9


def test_refusals_and_strangers() -> None:
    metrics = make()
    metrics.add(record(code="overloaded", refused=True))
    metrics.add(record(served=False, model="label-bomb"))
    metrics.add(record(outcome="abort"))
    found = samples(metrics)
    assert found["mainspring_rejections_total{code=overloaded,engine=0,model_name=m}"] == 1
    assert found["vllm:request_success_total{engine=0,finished_reason=abort,model_name=m}"] == 1
    assert not any("label-bomb" in name for name in found)
    assert not any(name.endswith("_created") for name in found)


def test_http() -> None:
    metrics = make()
    metrics.add_http("/v1/models", "GET", 204)
    found = samples(metrics)
    assert found["http_requests_total{handler=/v1/models,method=GET,status=2xx}"] == 1
