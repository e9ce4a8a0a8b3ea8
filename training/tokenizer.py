"""The guide's own tokenizer: byte-level BPE trained on the corpus, with four special tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["CHAT_TEMPLATE", "END", "encode_turn", "train_tokenizer", "write_tokenizer_config"]

END = "<|end|>"
SPECIAL = (END, "<|system|>", "<|user|>", "<|assistant|>")

# The guide answers one question at a time. Old turns cannot help it, so the template keeps a
# leading system message and the last five messages; a long conversation never fills the context.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = 'system' if message.role == 'developer' else message.role -%}
{%- if role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('mainspring-guide knows the roles system, user and assistant') -}}
{%- endif -%}
{%- if loop.revindex <= 5 or (loop.first and role == 'system') -%}
<|{{ role }}|>{{ message.content | trim }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE of at most `vocabulary` tokens; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode_turn(tokenizer: Tokenizer, role: str, content: str) -> list[int]:
    """One message as the chat template writes it; special tokens in `content` stay plain text."""
    ids: list[int] = tokenizer.encode(content.strip(), add_special_tokens=False).ids
    return [tokenizer.token_to_id(f"<|{role}|>"), *ids, tokenizer.token_to_id(END)]


def write_tokenizer_config(directory: Path, context: int) -> None:
    """`tokenizer_config.json` beside the tokenizer."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
