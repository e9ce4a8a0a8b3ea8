"""Hugging Face transformers: bf16, SDPA attention, generate() over one static batch."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from benchmarks.sides import answer, resident_mb


class Clock(BaseStreamer):  # type: ignore[misc]
    """When generate() gave the prompts back, and each token after."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options["checkpoint"], dtype=torch.bfloat16, attn_implementation="sdpa"
    )

    @torch.inference_mode()
    def batch(sequences: int, prompt: int, output: int) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        vocabulary = model.config.vocab_size
        ids = torch.from_numpy(rng.integers(1, vocabulary, (sequences, prompt)))
        config = transformers.GenerationConfig(
            max_new_tokens=output, min_new_tokens=output, do_sample=False, pad_token_id=0
        )
        clock = Clock()
        begin = time.perf_counter()
        # Streaming is for one sequence; a batch has only its end.
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=config,
            streamer=clock if sequences == 1 else None,
        )
        end = time.perf_counter()
        if made.shape != (sequences, prompt + output):
            raise RuntimeError(f"{tuple(made.shape)} is not {(sequences, prompt + output)}")
        figures = {"output_tokens_per_second": sequences * output / (end - begin)}
        if sequences == 1:
            first = clock.times[1]
            figures["prefill_tokens_per_second"] = prompt / (first - begin)
            figures["decode_tokens_per_second"] = (output - 1) / max(end - first, 1e-9)
        return {**figures, "resident_mb": resident_mb()}

    about = {
        "engine": "transformers",
        "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "precision": "bf16",
    }
    answer(about, {"batch": batch})


main()
