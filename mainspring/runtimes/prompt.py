"""From what a request says to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from mainspring.errors import BadRequest, ContextLength, ModelError
from mainspring.runtimes.forms import Forms
from mainspring.runtimes.infill import infill
from mainspring.runtimes.reasoning import FIELD
from mainspring.runtimes.tokenizer import Guard, Tokenizer
from mainspring.types import Message, Sampling

__all__ = ["Guarded", "Prompt", "Prompts"]

PROMPT, MESSAGES, SUFFIX, TOKENS = "prompt", "messages", "suffix", "tokens"
RESERVED = frozenset({"messages", "chat_template", "raise_exception", "strftime_now"})


class Prompt(Struct, frozen=True):
    """A prompt as the Engine takes it, and its text where the answer repeats it."""

    ids: tuple[int, ...]
    echo: str = ""
    field: str = PROMPT
    """of the Request that it was made from, for errors"""
    text: str = ""
    """of a conversation, as the template wrote it"""


class Guarded(Struct, frozen=True):
    """What a chat template is given; `mark` breaks the special tokens in the strings."""

    messages: list[Any]
    variables: dict[str, Any]
    mark: str


class Prompts:
    """Makes prompts for one model. Takes time in proportion to the text: call it in a thread.

    Raises ModelError if the tokenizer does not belong to a model of that vocabulary.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, context: int, vocabulary: int) -> None:
        tokenizer.check(vocabulary)
        self.tokenizer = tokenizer
        self._name = name
        self._context = context
        self._vocabulary = vocabulary

    def guard(
        self,
        messages: Sequence[Message],
        variables: Mapping[str, Any],
        forms: Forms = Forms(),  # noqa: B008 - frozen
    ) -> Guarded:
        """The messages for the chat template. Raises ContextLength or BadRequest."""
        if reserved := sorted(RESERVED & variables.keys()):
            raise BadRequest(
                f"chat_template_kwargs cannot set {reserved[0]}", param="chat_template_kwargs"
            )
        fields = [_fields(message, forms) for message in messages]
        texts = list(_texts([fields, variables]))
        self._check_bytes(sum(map(_bytes, texts)), MESSAGES)
        guard = Guard(self.tokenizer.special, texts)
        given = {"add_generation_prompt": True, **guard(dict(variables))}
        return Guarded(guard(fields), given, guard.mark)

    def chat(self, text: str, mark: str) -> Prompt:
        """The prompt of a rendered conversation. Raises ContextLength."""
        self._check_slices(text, MESSAGES)
        ids = self._known(self.tokenizer.encode_guarded(text, mark))
        return Prompt(ids, field=MESSAGES, text=text)

    def complete(self, prompt: str | Sequence[int], *, echo: bool, suffix: str = "") -> Prompt:
        """The prompt of a completion: whoever sends it writes all of it, special tokens included.

        With `suffix` it asks for what stands between the two texts. Raises ContextLength or
        BadRequest.
        """
        if isinstance(prompt, str):
            self._check_text(prompt, PROMPT)
            if suffix:
                self._check_text(suffix, SUFFIX)
                ids = self._known(infill(self._name, self.tokenizer, prompt, suffix))
                return Prompt(ids, prompt if echo else "")
            return Prompt(self._known(self.tokenizer.encode(prompt)), prompt if echo else "")
        self._check_ids(prompt, PROMPT)
        return Prompt(tuple(prompt), self.tokenizer.decode(prompt) if echo else "")

    def tokens(self, text: str, *, begin: bool) -> Prompt:
        """A text as a completion reads it, `begin` as in `Tokenizer.encode`.

        Raises ContextLength.
        """
        self._check_text(text, PROMPT)
        return Prompt(self._known(self.tokenizer.encode(text, begin=begin)))

    def text(self, ids: Sequence[int]) -> str:
        """The text of the ids, special tokens by their names. Raises BadRequest."""
        self._check_ids(ids, TOKENS)
        return self.tokenizer.decode(ids, special=True)

    def check(self, prompt: Prompt, sampling: Sampling) -> None:
        """Raise ContextLength unless prompt and asked output fit into the context."""
        tokens, context, asked = len(prompt.ids), self._context, sampling.max_tokens or 1
        if not tokens:
            raise BadRequest("the prompt holds no tokens; send at least one", param=prompt.field)
        if tokens >= context:
            raise ContextLength(
                f"the prompt has {tokens} tokens; the context of {self._name} is {context}, and "
                "the answer needs at least one of them",
                param=prompt.field,
            )
        if tokens + asked > context:
            raise ContextLength(
                f"the prompt has {tokens} tokens and max_tokens asks for {asked}; the context "
                f"of {self._name} is {context}: ask for at most {context - tokens}",
                param="max_tokens",
            )

    def _check_bytes(self, count: int, field: str) -> None:
        """Refuse, before it costs anything, a text that cannot fit."""
        most = self._context * self.tokenizer.longest
        if count > most:
            raise ContextLength(
                f"the prompt has {count} bytes; the context of {self._name} is {self._context} "
                f"tokens, which hold {most} bytes at the very most",
                param=field,
            )

    def _check_text(self, text: str, field: str) -> None:
        self._check_bytes(_bytes(text), field)
        self._check_slices(text, field)

    def _check_slices(self, text: str, field: str) -> None:
        """Refuse a text that is too long before reading all of it at once."""
        if self.tokenizer.exceeds(text, self._context):
            raise ContextLength(
                f"the prompt has more than {self._context} tokens in {len(text)} characters; the "
                f"context of {self._name} is {self._context}",
                param=field,
            )

    def _known(self, ids: list[int]) -> tuple[int, ...]:
        """The ids that the tokenizer gave; `Tokenizer.check` cannot see all it might give."""
        if ids and max(ids) >= self._vocabulary:
            raise ModelError(
                f"the tokenizer of {self._name} gives the token id {max(ids)}, but the model knows "
                f"0 to {self._vocabulary - 1}: the files are not of one model"
            )
        return tuple(ids)

    def _check_ids(self, ids: Sequence[int], field: str) -> None:
        for worst in (min(ids, default=0), max(ids, default=0)):
            if not 0 <= worst < self._vocabulary:
                raise BadRequest(
                    f"token id {worst} is not in the vocabulary, 0 to {self._vocabulary - 1}",
                    param=field,
                )


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def _texts(value: Any) -> Iterator[str]:
    """Every string in a value made of dictionaries and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _fields(message: Message, forms: Forms) -> dict[str, Any]:
    """A message as the template takes it: absent fields are absent."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        fields[forms.marks.field if forms.marks else FIELD] = message.reasoning
    if message.tool_calls:
        objects = forms.tools is None or forms.tools.objects
        calls = message.tool_calls
        fields["tool_calls"] = [_call(call) for call in calls] if objects else list(calls)
        if forms.tools and not message.content:
            fields["content"] = forms.tools.empty
    return fields


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """The call with its arguments as an object."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = msgspec.json.decode(function["arguments"])
    except msgspec.DecodeError:
        return dict(call)
    return {**call, "function": {**function, "arguments": arguments}}
