"""Score mainspring-guide on questions it has never seen: `python -m training.evaluate`.

Answers come greedily from Mainspring's own engine (`--with transformers`: from transformers
instead). An answer is right when its normalized text is that of the right entry; a question out
of the domain is refused when the answer is one of the refusals.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.corpus import Corpus, load_corpus, normalized

__all__ = ["Answerer", "Score", "mainspring_answerer", "score"]

ROOT = Path(__file__).parent
GUIDE = ROOT.parent / "mainspring" / "registry" / "mainspring-guide"
LONGEST = 160

Answerer = Callable[[Sequence[str]], list[str]]
"""Questions to answers, one for each, greedily."""


@dataclass(frozen=True, slots=True)
class Score:
    held_out: int
    """questions about Mainspring that were never trained on"""
    right: float
    """share of them answered with the right entry's text"""
    false_refusals: float
    """share of them that were refused"""
    out_of_domain: int
    refused: float
    """share of the out-of-domain questions that were refused"""
    mistakes: list[dict[str, str]]
    """question, the id of the entry wanted, and what was answered: an id, or the text"""


def score(corpus: Corpus, answer: Answerer, kind: str = "held_out") -> Score:
    """Ask every question of a kind (held_out or development) of the corpus."""
    names = {normalized(entry.answer): entry.id for entry in corpus.entries}
    names |= {normalized(text): "refusal" for text in corpus.out_of_domain.refusals.values()}
    wanted = [(q, entry.id) for entry in corpus.entries for q in getattr(entry, kind)]
    inside = len(wanted)
    wanted += [(q, "refusal") for q in getattr(corpus.out_of_domain, kind)]
    texts = answer([question for question, _ in wanted])
    given = [names.get(normalized(text), text) for text in texts]
    mistakes = [
        {"question": question, "wanted": want, "given": got}
        for (question, want), got in zip(wanted, given, strict=True)
        if want != got
    ]
    outside = len(wanted) - inside
    missed = sum(row["wanted"] == "refusal" for row in mistakes)
    return Score(
        held_out=inside,
        right=1 - (len(mistakes) - missed) / inside,
        false_refusals=given[:inside].count("refusal") / inside,
        out_of_domain=outside,
        refused=1 - missed / outside,
        mistakes=mistakes,
    )


def mainspring_answerer(directory: Path, **settings: Any) -> Answerer:
    """Answers from Mainspring's engine in this process."""
    from mainspring import LLM
    from mainspring.types import Message, Sampling

    greedy = Sampling(temperature=0.0, max_tokens=LONGEST)

    def answer(questions: Sequence[str]) -> list[str]:
        with LLM(directory, **settings) as llm:
            return [llm.chat([Message("user", text)], greedy).text for text in questions]

    return answer


def transformers_answerer(directory: Path) -> Answerer:
    """Answers from transformers in float32: the oracle."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def answer(questions: Sequence[str]) -> list[str]:
        texts = []
        for text in questions:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            output = model.generate(**prompt, max_new_tokens=LONGEST, do_sample=False)
            fresh = output[0, prompt["input_ids"].shape[1] :]
            texts.append(tokenizer.decode(fresh, skip_special_tokens=True))
        return texts

    return answer


def digest(directory: Path) -> str:
    """sha256 of the weights, so that a score is known to be of this checkpoint."""
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=GUIDE)
    parser.add_argument("--with", dest="engine", default="mainspring", help="or: transformers")
    parser.add_argument("--quantize", default="none", help="none, int8 or int4")
    parser.add_argument(
        "--development", action="store_true", help="the questions that the corpus is developed with"
    )
    parser.add_argument("--save", action="store_true", help="write training/results.json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    corpus = load_corpus()
    if options.engine == "transformers":
        answer = transformers_answerer(options.model)
    else:
        answer = mainspring_answerer(options.model, quantize=options.quantize)
    start = time.monotonic()
    result = score(corpus, answer, "development" if options.development else "held_out")
    for row in result.mistakes:
        print(f"{row['question']!r}: wanted {row['wanted']}, got {row['given']}")
    print(f"right {result.right:.1%} of {result.held_out}, false refusals", end=" ")
    print(f"{result.false_refusals:.1%}; refused {result.refused:.1%} of {result.out_of_domain}")
    if options.save:
        trained = json.loads((ROOT / "runs" / f"{options.model.name}.json").read_text())
        evaluated = {
            "weights_sha256": digest(options.model),
            "engine": options.engine,
            "quantize": options.quantize,
            "seconds": round(time.monotonic() - start, 1),
            **dataclasses.asdict(result),
        }
        text = json.dumps({"training": trained, "evaluation": evaluated}, indent=2) + "\n"
        (ROOT / "results.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
