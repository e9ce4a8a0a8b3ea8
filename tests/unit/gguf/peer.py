"""Asks llama.cpp about a file: `python peer.py FILE` with a JSON list of texts and ids on stdin.

Run by the interpreter that has llama-cpp-python. Writes JSON: the token ids of each text, and the
logits after each of the ids.
"""

from __future__ import annotations

import json
import sys

import llama_cpp


def main() -> None:
    asked = json.load(sys.stdin)
    model = llama_cpp.Llama(
        sys.argv[1], n_ctx=256, n_batch=256, logits_all=True, verbose=False, n_threads=1
    )
    tokens = [model.tokenize(text.encode(), add_bos=True, special=True) for text in asked["texts"]]
    model.eval(asked["ids"])
    logits = model.scores[: len(asked["ids"])].tolist()
    json.dump({"tokens": tokens, "logits": logits}, sys.stdout)


if __name__ == "__main__":
    main()
