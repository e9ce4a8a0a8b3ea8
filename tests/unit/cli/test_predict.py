"""The formulas of `doctor`, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mainspring.cli.predict import (
    CALLS,
    SEQUENCE,
    STEP,
    Prediction,
    Work,
    decode_seconds,
    overlapped,
    predict,
    prompt_seconds,
    work_of,
)
from mainspring.cli.probe import FORMATS, ROWS, Speed, measure
from mainspring.config import ModelConfig
from mainspring.engine.weights import inspect_config
from mainspring.kernels import load_kernels

GB = 10**9
QWEN = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    "max_position_embeddings": 32768, "tie_word_embeddings": True,
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 1000,
    "max_position_embeddings": 2048, "num_local_experts": 8, "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}  # fmt: skip


def speed(**changes: Any) -> Speed:
    rates = {"bf16": {1: 40e9, 16: 200e9, 256: 400e9}, "int8": {1: 80e9, 16: 400e9, 256: 900e9}}
    fields = {"isa": "x", "threads": 2, "bandwidth": 20e9, "linear": rates, "attention": 50e9,
              "cache": {1: 10e9, 16: 15e9}, "call": 0.0}  # fmt: skip
    return Speed(**(fields | changes))


def found(config: dict[str, Any], free: int = 64 * GB, **settings: Any) -> dict[str, Prediction]:
    predictions = predict(inspect_config(config), config, speed(), free, ModelConfig(**settings))
    return {prediction.format: prediction for prediction in predictions}


def test_the_parts_of_a_dense_model_add_up() -> None:
    info = inspect_config(QWEN)
    work = work_of(info, QWEN)
    assert work.head == 151936 * 896
    assert work.table == 0  # shared with the head
    assert work.dense + work.head == info.parameters
    assert work.active(1) == work.used == work.dense


def test_an_untied_table_is_not_read() -> None:
    info = inspect_config(MIXTRAL)
    work = work_of(info, MIXTRAL)
    assert work.table == work.head == 1000 * 512
    assert work.dense + work.expert + work.table + work.head == info.parameters


def test_experts_are_read_as_they_are_chosen() -> None:
    work = work_of(inspect_config(MIXTRAL), MIXTRAL)
    assert work.expert == 3 * 512 * 1024 * 8 * 4
    assert work.used == work.dense + work.expert / 4
    assert work.active(1) == work.used
    assert work.active(2) == pytest.approx(work.dense + work.expert * (1 - 0.75**2))
    assert work.active(1000) == pytest.approx(work.dense + work.expert)


def test_one_stream_is_bound_by_memory() -> None:
    work = Work(layers=1, width=64, table=0, head=0, dense=10**9, expert=0, experts=0, chosen=1)
    kv, bandwidth = 1000, 20e9
    fast = speed(linear={"bf16": {1: 1e15, 16: 1e15, 256: 1e15}}, cache={1: 10e9, 16: 1e15})
    seconds = decode_seconds(work, 2.0, kv, "bf16", fast, 1)
    assert seconds == pytest.approx(2 * 10**9 / bandwidth + 512 * kv / 10e9 + STEP + SEQUENCE)
    seconds = decode_seconds(work, 2.0, kv, "bf16", fast, 16)
    keys = 16 * 512 * kv / bandwidth
    assert seconds == pytest.approx(2 * 10**9 / bandwidth + keys + STEP + 16 * SEQUENCE, rel=1e-5)


def test_a_prompt_is_bound_by_arithmetic() -> None:
    work = Work(layers=2, width=64, table=0, head=10**8, dense=10**9, expert=0, experts=0, chosen=1)
    slow = speed(bandwidth=1e15, call=1e-6)
    expected = 2e9 * 512 / 400e9 + 2e8 / 40e9 + 2 * 2 * 512 * 512 * 64 / 50e9
    expected += 2 * CALLS * 1e-6 + STEP + SEQUENCE
    assert prompt_seconds(work, 2.0, "bf16", slow) == pytest.approx(expected)


def test_smaller_formats_are_predicted_faster_and_smaller() -> None:
    predictions = found(QWEN)
    bf16, int8 = predictions["bf16"], predictions["int8"]
    assert int8.weight_bytes < 0.6 * bf16.weight_bytes
    assert int8.tokens_per_second > bf16.tokens_per_second
    assert int8.first_token_seconds < bf16.first_token_seconds
    assert bf16.tokens_per_second_16 > bf16.tokens_per_second
    assert bf16.kv_bytes_per_token == 2 * 24 * 2 * 64 * 2


def test_what_does_not_fit_says_what_would() -> None:
    predictions = found(QWEN, free=800 << 20)
    assert not predictions["bf16"].fits
    assert "try --quantize int4" in predictions["bf16"].advice
    assert "needs" in predictions["bf16"].advice
    assert predictions["bf16"].sequences_full == 0


def test_concurrency_follows_the_servers_own_plan() -> None:
    predictions = found(QWEN, kv_memory=1 << 30)
    tokens = (1 << 30) // (32 * 12288) * 32
    assert predictions["bf16"].sequences_1k == min(64, tokens // 1000)
    assert predictions["bf16"].sequences_full == tokens // 32768
    assert found(QWEN, kv_memory=1 << 30, context=1024)["bf16"].sequences_full == min(
        64, tokens // 1024
    )


def test_the_probe_measures_real_kernels() -> None:
    kernels = load_kernels("reference")
    measured = measure(
        kernels, budget=0.02, big=(256, 256), small=(64, 128), tokens=64, layers=2, blocks=16
    )
    assert measured.isa == "reference"
    assert {*measured.linear} == {*FORMATS}
    for rates in measured.linear.values():
        assert {*rates} == {*ROWS}
        assert all(rate > 0 for rate in rates.values())
    assert measured.bandwidth > 0
    assert measured.attention > 0
    assert measured.cache[1] > 0
    assert measured.cache[16] > 0
    assert 0 < measured.call < 0.1


def test_reading_and_computing_overlap_in_part() -> None:
    for read, compute in ((13.1, 20.6), (1.0, 1.0), (30.0, 0.1)):
        assert max(read, compute) < overlapped(read, compute) < read + compute
