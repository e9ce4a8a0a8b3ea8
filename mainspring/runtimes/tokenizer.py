"""Text to token ids, and what of a text is a special token.

A checkpoint's tokenizer.json is read by the `tokenizers` library, checked against the model, and
asked from a thread. Special tokens stand for the structure of a conversation; where text comes
from a message they must stay text. `Guard` marks them there before a chat template is rendered,
and `Tokenizer.encode_guarded` reads the rendering accordingly.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import tokenizers
from msgspec import Struct

from mainspring.errors import BadRequest, ModelError
from mainspring.runtimes.detokenizer import (
    ByteDetokenizer,
    Detokenizer,
    ShowingDetokenizer,
    TokenBytes,
    WindowDetokenizer,
)
from mainspring.runtimes.protocol import Vocabulary
from mainspring.runtimes.tokenizer_json import FILE, tokenizer_json

__all__ = ["AddedToken", "Guard", "SpecialTokens", "Tokenizer"]

GROWTH_LIMIT = 64
"""times that the replacements of a normalizer or decoder may lengthen a text"""
TOKEN_LIMIT = 1 << 14
"""bytes of a token"""
PRIVATE = (range(0xE100, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
SLICE, SEAM = 1 << 16, 16
"""characters read at a time; tokens that cutting a text in two may add, and more"""
SPECIAL_LIMIT, DEPTH = 1 << 24, 40
"""sum of the squares of the special tokens' lengths; levels of the tree of their beginnings"""
SAMPLES = 256
HOLES = 1024
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>").fullmatch


class AddedToken(Struct):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False


class TokenizerFile(Struct):
    """The parts of tokenizer.json that are of interest besides the library's reading of it."""

    added_tokens: list[AddedToken] = []
    normalizer: Any = None
    decoder: Any = None


class SpecialTokens:
    """The special tokens of a tokenizer, as text."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.tokens = {token.content: token for token in tokens if token.content}
        if sum(len(text) ** 2 for text in self.tokens) > SPECIAL_LIMIT:
            raise ModelError(f"{FILE} has too many or too long special tokens")
        pattern = _any_of(list(self.tokens)) if self.tokens else r"(?!)"
        self.pattern = re.compile(pattern)
        self.loose = re.compile(pattern, re.IGNORECASE)
        """also what a template's `upper` or `lower` would make one of"""
        self.starts = tuple({text[:i] for text in self.tokens for i in range(1, len(text))})

    def ids(self) -> frozenset[int]:
        return frozenset(token.id for token in self.tokens.values())


def _any_of(words: Sequence[str], depth: int = 0) -> str:
    """A pattern of the words, the longest that fits first, written as a tree of their beginnings.

    So a text is searched in a time that hardly depends on how many words there are.
    """
    if len(words) == 1 or depth == DEPTH:
        return "(?:" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + ")"
    first, last = min(words), max(words)
    pairs = zip(first, last, strict=False)
    common = next((i for i, (a, b) in enumerate(pairs) if a != b), len(first))
    groups: dict[str, list[str]] = {}
    for word in words:
        if len(word) > common:
            groups.setdefault(word[common], []).append(word[common:])
    branches = "|".join(_any_of(group, depth + 1) for group in groups.values())
    whole = any(len(word) == common for word in words)
    return f"{re.escape(words[0][:common])}(?:{branches}){'?' if whole else ''}"


class Guard:
    """Breaks the special tokens that occur in a request's strings with a private character.

    The character occurs nowhere in `texts`, so that it cannot be forged. A template can trim,
    join, compare or dump the guarded strings; wherever they land, what was a special token is
    none, and `Tokenizer.encode_guarded` takes the character out again.
    """

    def __init__(self, special: SpecialTokens, texts: Iterable[str]) -> None:
        self._special = special
        used = {character for text in texts if not text.isascii() for character in text}
        free = (chr(c) for r in PRIVATE for c in r if chr(c) not in used)
        mark = next(free, None)
        if mark is None:
            raise BadRequest("the messages hold every private-use character", param="messages")
        self.mark = mark

    def __call__(self, value: Any) -> Any:
        """`value` with every string in it, also inside lists and dictionaries, guarded."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value

    def _text(self, text: str) -> str:
        special, mark = self._special, self.mark
        found = special.loose.search(text)
        while found:
            text = special.loose.sub(lambda match: match[0][0] + mark + match[0][1:], text)
            # One-character tokens stay themselves before the mark; the reader knows.
            found = next((m for m in special.loose.finditer(text) if len(m[0]) > 1), None)
        # Half a token at the end could become whole with what the template puts after it.
        return text + mark if text.endswith(special.starts) else text


class Tokenizer:
    """A checkpoint's tokenizer. Encoding takes time in proportion to the text: call it in a thread.

    Raises ModelError naming the file and what is wrong with it.
    """

    def __init__(self, path: Path) -> None:
        data = tokenizer_json(path)
        self._library = _load(data)
        try:
            file = msgspec.json.decode(data, type=TokenizerFile)
        except msgspec.DecodeError as error:
            raise ModelError(f"{FILE}: {error}") from error
        _check_growth(file)
        self.longest = self._longest_token(file)
        """bytes of the longest token at most"""
        if self.longest > TOKEN_LIMIT:
            raise ModelError(
                f"{FILE} has a token of {self.longest} bytes; the limit is {TOKEN_LIMIT}"
            )
        self.size = self._library.get_vocab_size(with_added_tokens=True)
        self._largest = self._largest_id(file)
        self._library.no_truncation()
        self._library.no_padding()
        # An added token of our own: text after it is read as one that does not begin a prompt.
        self._inner = f"\ue000{secrets.token_hex(16)}\ue001"
        self._library.add_tokens([tokenizers.AddedToken(self._inner, normalized=False)])
        self._lock = threading.Lock()
        self.special = SpecialTokens(token for token in file.added_tokens if token.special)
        skipped = self._skipped = self.special.ids()
        self._bytes = TokenBytes(file.decoder, self._library.id_to_token, skipped)
        self._added = {token.id: token.content for token in file.added_tokens}
        self._simple = self._bytes.usable and self._bytes_agree()

    # Text to ids ----------------------------------------------------------------------------------

    def encode(self, text: str, *, begin: bool = True) -> list[int]:
        """The ids of a text in which special tokens count as such.

        With `begin` the tokens that the tokenizer puts around every prompt are there, once, also
        if the text has them already.
        """
        ids = self._encode(text, begin)
        if begin and len(ids) > 1 and ids[0] == ids[1] and ids[0] in self._added:
            plain = self._encode(text, False)
            return plain if plain and plain[0] == ids[0] else ids
        return ids

    def encode_plain(self, text: str, *, inner: bool = False) -> list[int]:
        """The ids of a text in which nothing is special; `inner`: one that begins no prompt."""
        ids = self._encode(self._inner + text if inner else text, False, plain=True)
        return ids[1:] if inner else ids

    def id_of(self, token: str) -> int | None:
        """The id of a token by its name."""
        id: int | None = self._library.token_to_id(token)
        return id

    def exceeds(self, text: str, tokens: int) -> bool:
        """Whether a long text has more than `tokens` tokens, as far as its slices tell.

        Reading takes a hundred times a text's size; this finds out with a slice at a time.
        """
        if len(text) <= SLICE:
            return False
        count = 0
        for start in range(0, len(text), SLICE):
            count += len(self._encode(text[start : start + SLICE], False)) - SEAM
            if count > tokens:
                return True
        return False

    def encode_guarded(self, text: str, mark: str) -> list[int]:
        """The ids of a rendered template: special tokens broken by `mark` are read as text."""
        if mark not in text:
            return self._encode(text, False)
        ids: list[int] = []
        start, before = 0, None
        for match in re.finditer(rf"(?:{self.special.pattern.pattern})(?!{mark})", text):
            after = self.special.tokens[match[0]]
            ids += self._section(text[start : match.start()], mark, before, after)
            ids.append(after.id)
            start, before = match.end(), after
        return ids + self._section(text[start:], mark, before, None)

    def _section(
        self, text: str, mark: str, before: AddedToken | None, after: AddedToken | None
    ) -> list[int]:
        """The ids of a text between two special tokens, in which none is special."""
        text = text.replace(mark, "")
        if before is not None and before.rstrip:
            text = text.lstrip()
        if after is not None and after.lstrip:
            text = text.rstrip()
        if not text:
            return []
        return self.encode_plain(text, inner=before is not None)

    def _encode(self, text: str, begin: bool, *, plain: bool = False) -> list[int]:
        """`plain`: special tokens are read as text."""
        with self._lock, _blamed("cannot read this text"):
            if plain is not self._library.encode_special_tokens:
                self._library.encode_special_tokens = plain
            # The batch form without offsets is several times faster than `encode`.
            (encoding,) = self._library.encode_batch_fast([text], add_special_tokens=begin)
        ids: list[int] = encoding.ids
        return ids

    # Ids to text ----------------------------------------------------------------------------------

    def detokenizer(
        self, before: Sequence[int] = (), shown: Mapping[int, str] = MappingProxyType({})
    ) -> Detokenizer:
        """The text state of a choice that goes on from the tokens `before`; none: begins.

        Special tokens have no text but for those `shown`.
        """
        simple = ByteDetokenizer(self._bytes, first=not before) if self._simple else None
        state = simple or WindowDetokenizer(self._decode, before)
        return ShowingDetokenizer(state, shown) if shown else state

    def shown(self, texts: Iterable[str]) -> dict[int, str]:
        """The special tokens that occur in the texts, for `detokenizer`."""
        found = {match for text in texts for match in self.special.pattern.findall(text)}
        return {self.special.tokens[text].id: text for text in found}

    def added_token(self, text: str) -> int | None:
        """The id of a token that is never read as anything else; None: this is none."""
        return next((id for id, content in self._added.items() if content == text), None)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of the ids, special tokens left out, or written by their names."""
        if special:
            return self._decode(list(ids), special=True)
        state = self.detokenizer()
        return "".join([*map(state.feed, ids), state.end()])

    def token_bytes(self, id: int) -> bytes:
        """The token's own bytes; those of a special token are its name."""
        if id in self._added:
            return self._added[id].encode()
        if self._simple:
            return self._bytes[id]
        return self._decode([id]).encode()

    def vocabulary(self, size: int, eos: Sequence[int]) -> Vocabulary:
        """How the `size` tokens of a model are spelled, of which `eos` end a text.

        Takes 0.2 s for 150k tokens. Raises BadRequest where single tokens have no spelling.
        """
        if not self._simple:
            raise BadRequest(
                "this model's tokenizer does not tell how single tokens are spelled, so that its "
                "output cannot be held to a grammar"
            )
        ids = {*range(min(size, self.size)), *self._added}
        tokens = tuple(self.token_bytes(id) if id in ids else b"" for id in range(size))
        return Vocabulary(tokens, tuple(self._skipped), tuple(id for id in eos if id < size))

    def _decode(self, ids: list[int], *, special: bool = False) -> str:
        with _blamed("cannot turn these tokens into text"):
            text: str = self._library.decode(ids, skip_special_tokens=not special)
        return text

    # Checks ---------------------------------------------------------------------------------------

    def check(self, vocabulary: int) -> None:
        """Raise ModelError if the model, with `vocabulary` ids, lacks some of this tokenizer's."""
        if self._largest >= vocabulary:
            raise ModelError(
                f"{FILE} has token ids up to {self._largest}, but config.json says vocab_size "
                f"{vocabulary}: the files are not of one model"
            )

    def _largest_id(self, file: TokenizerFile) -> int:
        """Ids may have holes, so the number of tokens alone does not tell."""
        token = self._library.id_to_token
        beyond = [id for id in range(self.size, self.size + HOLES) if token(id) is not None]
        return max([self.size - 1, *beyond, *(added.id for added in file.added_tokens)])

    def _longest_token(self, file: TokenizerFile) -> int:
        # Reading each token's bytes would take longer than all the rest of a start.
        tokens = self._library.get_vocab(with_added_tokens=True)
        longest = max((len(token.encode()) for token in tokens), default=1)
        return max(1, longest) * _growth(file.decoder, lambda text: len(text.encode()))

    def _bytes_agree(self) -> bool:
        """Whether our reading of single tokens gives what the library's decoder gives."""
        ids = range(0, self.size, max(1, self.size // SAMPLES))
        sample = [id for id in ids if not BYTE_TOKEN(self._library.id_to_token(id) or "")]
        state = ByteDetokenizer(self._bytes, first=True)
        ours = "".join([*map(state.feed, sample), state.end()])
        return ours == self._decode(sample)


def _load(data: bytes) -> tokenizers.Tokenizer:
    with _blamed("is not a tokenizer", why=True):
        return tokenizers.Tokenizer.from_buffer(data)


@contextlib.contextmanager
def _blamed(fault: str, *, why: bool = False) -> Iterator[None]:
    """The library's errors, also its panics (which are no Exceptions), as ModelErrors.

    `why`: tell the library's words, which may quote the text that is read.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        words = f": {str(error)[:300]}" if why else ""
        raise ModelError(f"{FILE} {fault}{words}") from (error if why else None)


def _check_growth(file: TokenizerFile) -> None:
    """Refuse what would make of a short text one that no memory holds, or of a token an hour."""
    if any("Regex" in (step.get("pattern") or ()) for step in _steps(file.decoder)):
        raise ModelError(f"{FILE}: a decoder's pattern must be a String, not a Regex")
    for name, part in (("normalizer", file.normalizer), ("decoder", file.decoder)):
        if (growth := _growth(part, len)) > GROWTH_LIMIT:
            raise ModelError(
                f"{FILE}: the {name} can make a text {growth} times as long; the limit is "
                f"{GROWTH_LIMIT}"
            )


def _growth(part: Any, size: Callable[[str], int]) -> int:
    """How many times the `size` of a text it can have after this normalizer or decoder."""
    growth = 1
    for step in _steps(part):
        added = [step.get("content"), step.get("prepend")]
        growth *= max([1, *(size(text) for text in added if isinstance(text, str))])
    return growth


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or decoder, those of a Sequence one by one."""
    if isinstance(part, dict):
        yield part
        for inner in (*part.get("normalizers", ()), *part.get("decoders", ())):
            yield from _steps(inner)
