"""llama.cpp through llama-cpp-python, as its users run it: random weights in a GGUF file.

Greedy choice is numpy's argmax over the logits, which is cheaper than llama.cpp's own sampler.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import llama_cpp as lc
import numpy as np

from benchmarks.shapes import SHAPES
from benchmarks.sides import answer, figures
from benchmarks.sides.llamacpp_file import TYPES, write_gguf


class Llama:
    """One loaded model; a context is made for each measurement."""

    def __init__(self, path: Path, threads: int) -> None:
        lc.llama_backend_init()
        quiet = lc.llama_log_callback(lambda *_: None)
        lc.llama_log_set(quiet, ctypes.c_void_p(0))
        self._keep = quiet
        self.threads = threads
        self.model = lc.llama_model_load_from_file(
            str(path).encode(), lc.llama_model_default_params()
        )
        self.vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))

    def context(self, sequences: int, length: int) -> Any:
        params = lc.llama_context_default_params()
        params.n_ctx = (length + 32) * sequences
        params.n_seq_max = sequences
        params.n_batch = 2048
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = self.threads
        return lc.llama_init_from_model(self.model, params)

    def decode(self, context: Any, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run rows of (token, position, sequence, wants logits); the greedy choice of those."""
        chosen: list[int] = []
        for start in range(0, len(rows), 2048):
            part = rows[start : start + 2048]
            batch = lc.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, (token, position, sequence, wanted) in enumerate(part):
                batch.token[i] = token
                batch.pos[i] = position
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = sequence
                batch.logits[i] = wanted
            if status := lc.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode returned {status}")
            for i, row in enumerate(part):
                if row[3]:
                    logits = lc.llama_get_logits_ith(context, i)
                    chosen.append(int(np.argmax(np.ctypeslib.as_array(logits, (self.vocabulary,)))))
            lc.llama_batch_free(batch)
        return chosen

    def batch(self, sequences: int, prompt: int, output: int) -> dict[str, Any]:
        """`sequences` prompts of random tokens to `output` tokens each, together."""
        rng = np.random.default_rng(1)
        prompts = rng.integers(1, self.vocabulary, (sequences, prompt)).tolist()
        context = self.context(sequences, prompt + output)
        begin = time.perf_counter()
        rows = [
            (token, position, s, position == prompt - 1)
            for s in range(sequences)
            for position, token in enumerate(prompts[s])
        ]
        tokens = self.decode(context, rows)
        first = time.perf_counter()
        for position in range(prompt, prompt + output - 1):
            tokens = self.decode(
                context, [(tokens[s], position, s, True) for s in range(sequences)]
            )
        end = time.perf_counter()
        found = figures(
            sequences * prompt,
            sequences * output,
            sequences * (output - 1),
            begin=begin,
            first=first,
            end=end,
        )
        lc.llama_free(context)
        return found


def main() -> None:
    options = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write_gguf(path, SHAPES[options["shape"]], options["precision"])
        llama = Llama(path, options["threads"])
        about = {
            "engine": "llama.cpp",
            "version": f"llama-cpp-python {lc.__version__}",
            "precision": TYPES[options["precision"]].name,
            "system": lc.llama_print_system_info().decode(),
        }
        answer(about, {"batch": llama.batch})


main()
