"""OpenVINO GenAI's continuous batching: an exported checkpoint of random weights, token ids in.

Its best setting on this kind of machine: int8 activations in groups of 128 (the default is 32),
an 8-bit KV cache. int8 weights are symmetric, one scale a row; int4 weights have one scale for 128
numbers, and the embedding and head stay in 8 bits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

from benchmarks.shapes import SHAPES
from benchmarks.sides import answer, figures

GROUP = 128
"""numbers that share a scale"""


def load(folder: Path, threads: int, tokens: int) -> genai.ContinuousBatchingPipeline:
    """The pipeline with room in the KV cache for `tokens` and no prefix cache."""
    scheduler = genai.SchedulerConfig()
    scheduler.num_kv_blocks = tokens // 32 + 64
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = 2048
    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
        "KV_CACHE_PRECISION": "u8",
    }
    return genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)


def main() -> None:
    options = json.loads(sys.argv[1])
    vocabulary = SHAPES[options["shape"]]["vocab_size"]
    checkpoint = Path(options["checkpoint"])
    folder = checkpoint.with_name(f"{checkpoint.name}-openvino-{options['precision']}")
    if not folder.exists():  # a process of its own: torch is not part of what is measured
        export = [sys.executable, "-m", "benchmarks.sides.openvino_export"]
        subprocess.run([*export, checkpoint, folder], check=True, stdout=sys.stderr)
    pipeline = load(folder, options["threads"], options["tokens"])

    def batch(sequences: int, prompt: int, output: int) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        prompts = rng.integers(1, vocabulary, (sequences, 1, prompt))
        config = genai.GenerationConfig(max_new_tokens=output, ignore_eos=True, do_sample=False)
        begin = time.perf_counter()
        handles = [
            pipeline.add_request(i, openvino.Tensor(ids), config) for i, ids in enumerate(prompts)
        ]
        firsts: dict[int, float] = {}
        counts = [0] * sequences
        after = 0
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter()
            ready = len(firsts) == sequences
            for i, handle in enumerate(handles):
                while handle.can_read():
                    for made in handle.read().values():
                        counts[i] += len(made.generated_ids)
                        after += len(made.generated_ids) if ready else 0
                    firsts.setdefault(i, now)
        end = time.perf_counter()
        if counts != [output] * sequences:
            raise RuntimeError(f"sequences of {counts} tokens, not {output}")
        first = max(firsts.values())
        return figures(
            sequences * prompt, sequences * output, after, begin=begin, first=first, end=end
        )

    about = {
        "engine": "openvino",
        "version": f"openvino-genai {genai.__version__}",
        "precision": f"{options['precision']}, activations int8 in groups of {GROUP}, KV u8",
    }
    answer(about, {"batch": batch})


main()
