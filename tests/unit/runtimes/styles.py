"""Small tokenizers and chat templates in the styles of the families that are served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as pre

TEXTS = [
    "Once upon a time there was a lighthouse by the sea. <|im_start|>user <end_of_turn> [INST]",
    "The keeper's name was Zoë; she liked naïve crêpes, 日本語 and 😀 emoji.",
    "def f(x):\n    return x  # twice\n\n\tindented <table> </s> <s> <bos>",
] * 4


def byte_level(special: tuple[str, ...]) -> Tokenizer:
    """GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(r"'s|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+"), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=sorted(pre.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def sentencepiece(special: tuple[str, ...], kind: str) -> Tokenizer:
    """`llama`: a space before every part; `gemma`: none; `mistral`: one before the first part."""
    pieces = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocabulary = {piece: id for id, piece in enumerate(dict.fromkeys([*pieces, *model["vocab"]]))}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    replace = normalizers.Replace(" ", "▁")
    if kind == "llama":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif kind == "gemma":
        tokenizer.normalizer = replace
    else:
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
    strip = [] if kind == "gemma" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(["<unk>", *special])
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = sentencepiece(("<s>", "</s>"), "mistral")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def word_piece() -> Tokenizer:
    """A decoder whose tokens have no text of their own."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)

STYLES: dict[str, tuple[Any, str, dict[str, str]]] = {
    "chatml": (lambda: byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>")), CHATML, {}),
    "llama3": (
        lambda: byte_level(
            ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
        ),
        LLAMA3,
        {"bos_token": "<|begin_of_text|>"},
    ),
    "gemma": (
        lambda: sentencepiece(("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "gemma"),
        GEMMA,
        {"bos_token": "<bos>"},
    ),
    "mistral": (
        lambda: sentencepiece(("<s>", "</s>", "[INST]", "[/INST]"), "mistral"),
        MISTRAL,
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
    "llama2": (
        lambda: sentencepiece(("<s>", "</s>"), "llama"),
        MISTRAL,
        {"bos_token": "<s>", "eos_token": "</s>"},
    ),
}
TOKENIZERS = {name: style[0] for name, style in STYLES.items()} | {
    "metaspace": metaspace,
    "word_piece": word_piece,
}


def write(directory: Path, tokenizer: Tokenizer, config: dict[str, Any] | None = None) -> Path:
    """A checkpoint's tokenizer files, and no more."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config or {}))
    return directory


def with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def stripping(tokenizer: Tokenizer, token: str) -> Tokenizer:
    """`token` swallows the whitespace after it, as Phi-3's do."""
    tokenizer.add_special_tokens([AddedToken(token, rstrip=True, normalized=False)])
    return tokenizer
