"""Texts that stumble: the tokenizer, stop strings, and chat templates nobody would write."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mainspring.errors import ModelError
from mainspring.runtimes.renderer import Renderer
from mainspring.runtimes.stops import Stops
from mainspring.runtimes.tokenizer import Guard, Tokenizer
from tests.fuzz.mutate import CASES, mutated, nasty_text
from tests.tiny import CHAT_TEMPLATE, SPECIAL, tiny_tokenizer


def metaspace() -> Library:
    """As SentencePiece models come: pieces with a mark for spaces, bytes where there is none."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"aA0<|>{}", "▁a"]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>")
    library = Library(model)
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(list(SPECIAL))
    return library


def words() -> Library:
    """Byte-level pieces behind a normalizer and the usual pattern."""
    library = tiny_tokenizer()
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return library


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("made", [tiny_tokenizer, metaspace, words], ids=lambda m: m.__name__)
def test_any_text_becomes_tokens_and_text_again(
    tmp_path: Path, made: Callable[[], Library], cases: int
) -> None:
    made().save(str(tmp_path / "tokenizer.json"))
    tokenizer, rng = Tokenizer(tmp_path), random.Random(35)
    special = tokenizer.special.ids()
    for _ in range(cases):
        text = nasty_text(rng, 40)
        ids = tokenizer.encode(text)
        assert all(0 <= id < tokenizer.size for id in ids)
        # Piece by piece, the text of any ids is the text of all of them.
        state = tokenizer.detokenizer()
        assert "".join([*map(state.feed, ids), state.end()]) == tokenizer.decode(ids)
        if made is tiny_tokenizer:
            plain = tokenizer.encode_plain(text)
            assert not special.intersection(plain)
            assert tokenizer.decode(plain) == text
        guard = Guard(tokenizer.special, [text])
        guarded = tokenizer.encode_guarded("<|user|>" + guard(text) + "<|end|>", guard.mark)
        assert [id for id in guarded if id in special] == [guarded[0], guarded[-1]]


@pytest.mark.parametrize("cases", CASES)
def test_a_damaged_tokenizer_is_refused_or_reads(tmp_path: Path, cases: int) -> None:
    sources = []
    for made in (tiny_tokenizer, metaspace, words):
        made().save(str(tmp_path / "tokenizer.json"))
        sources.append((tmp_path / "tokenizer.json").read_bytes())
    rng, refused = random.Random(34), 0
    for case in range(cases // 10):  # a tokenizer takes milliseconds to load
        (tmp_path / "tokenizer.json").write_bytes(mutated(rng, sources[case % 3]))
        try:
            Tokenizer(tmp_path).encode(nasty_text(rng, 20))
        except ModelError as error:
            assert error.message and str(tmp_path) not in error.message
            refused += 1
    assert refused


@pytest.mark.parametrize("cases", CASES)
def test_stop_strings_in_any_pieces(cases: int) -> None:
    rng = random.Random(41)
    for _ in range(cases):
        text = nasty_text(rng, 30)
        strings = [nasty_text(rng, 3) for _ in range(rng.randint(1, 4))]
        if text and rng.random() < 0.5:
            at = rng.randrange(len(text))
            strings.append(text[at : at + rng.randint(1, 5)])
        stops, out, hit, at = Stops(strings), "", None, 0
        while at < len(text) and hit is None:
            end = at + rng.randint(1, 6)
            more, hit = stops.feed(text[at:end])
            out, at = out + more, end
        if hit is None:
            out += stops.end()
        ends = [text.find(string) + len(string) for string in strings if string and string in text]
        if not ends:
            assert (out, hit) == (text, None)
        else:
            assert hit in strings and len(out + hit) == min(ends) and text.startswith(out + hit)


@pytest.mark.parametrize("cases", CASES)
def test_templates_that_were_damaged(cases: int) -> None:
    """In this process, without its limits: what must hold is that every fault is an answer."""
    rng, source, texts = random.Random(33), CHAT_TEMPLATE.encode(), 0
    for _ in range(cases):
        damaged = mutated(rng, source).decode(errors="replace")
        messages = [{"role": nasty_text(rng, 2), "content": nasty_text(rng, 10)} for _ in range(3)]
        request = {
            "messages": messages,
            "variables": {"add_generation_prompt": True},
            "mark": "\ue100",
        }
        renderer = Renderer()
        for frame in ({"source": damaged, "variables": {}}, request):
            said = renderer.answer(json.dumps(frame).encode())
            assert said.keys() in ({"text"}, {"kind", "error"})
            if "error" in said:
                assert said["kind"] in ("template", "raised", "limit") and said["error"]
                break
        else:
            texts += 1
    assert texts > cases / 20
