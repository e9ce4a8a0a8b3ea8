"""The nouns every layer shares. No I/O, no JSON, no arrays.

Times are seconds of the system-wide monotonic clock (`time.monotonic()`), so a time taken in a
Worker compares with one taken in the server on the same machine.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from enum import StrEnum
from typing import Any, Literal, Protocol

from msgspec import Struct

__all__ = [
    "CallPiece",
    "Chunk",
    "EngineStats",
    "Event",
    "Finish",
    "Grammar",
    "Message",
    "ModelInfo",
    "Request",
    "Runtime",
    "Sampling",
    "Task",
    "Thinking",
    "TierStats",
    "Timeline",
    "Timings",
    "Token",
    "TokenTime",
    "Usage",
]


class Task(StrEnum):
    """What a Request asks a Model to do."""

    CHAT = "chat"
    COMPLETE = "complete"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"


class Finish(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


class Thinking(Struct, frozen=True):
    """How long a model may think before it answers."""

    budget: int
    """Output tokens of reasoning, after which the next one is `end`; >= 0."""
    end: int
    """The token that ends reasoning."""
    begin: int | None = None
    """The first output token, if there is reasoning; None: the prompt has begun it."""


class Sampling(Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Token ids and numbers only: the Engine knows no text.

    The dialect has already checked the ranges written here.
    """

    temperature: float = 1.0
    """0 is greedy; at most 2 through the OpenAI dialect."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likely tokens with this much probability, in (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output; > 0."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token already generated, in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time the token was generated, in [-2, 2]."""
    logit_bias: dict[int, float] = {}
    """Added to the logits of these token ids, each in [-100, 100]."""
    seed: int = 0
    """Chosen before the request reaches the Engine, so that a replay draws the same numbers."""
    max_tokens: int | None = None
    """Output tokens at most; None runs to the end of the context."""
    min_tokens: int = 0
    """No end of sequence and no stop id before this many output tokens."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the choice, besides the model's own end-of-sequence ids."""
    ignore_eos: bool = False
    """Do not end at the model's own end-of-sequence ids."""
    logprobs: int | None = None
    """None: none. k >= 0: the chosen token's log-probability and those of the k likeliest.

    Log-probabilities are of the model's own distribution, before penalties, bias and temperature.
    """
    prompt_logprobs: int | None = None
    """The same for every prompt token but the first; turns prefix-cache reads off."""
    thinking: Thinking | None = None
    """None: the model thinks as long as it likes."""


class Grammar(Struct, frozen=True):
    """What the text of an answer has to look like, as a client wrote it."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark"]
    text: str = ""
    """A JSON Schema; a regular expression that the whole answer matches; a JSON list of strings,
    one of which is the answer; a grammar in llguidance's Lark or in GBNF."""
    strict: bool = True
    """json_schema: a keyword that cannot be enforced is an error; otherwise it is ignored."""
    field: str = "grammar"
    """of the request that it came in, for errors"""


class Message(Struct, frozen=True):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    """what the assistant thought before `content`"""


class Request(Struct, frozen=True, kw_only=True):
    """The canonical question, whichever dialect it came through."""

    id: str
    task: Task
    model: str
    arrival: float
    """When its last byte came in."""
    messages: tuple[Message, ...] = ()
    """The conversation of Task.CHAT, and of Task.TOKENIZE where there are no prompts."""
    prompts: tuple[str | tuple[int, ...], ...] = ()
    """Task.COMPLETE: each a text or token ids; choices are numbered prompt * n + i.

    Task.TOKENIZE: one text; Task.DETOKENIZE: the ids of one.
    """
    sampling: Sampling = Sampling()
    chosen: frozenset[str] = frozenset()
    """Fields of `sampling` that the client set; the checkpoint's own defaults fill the others."""
    n: int = 1
    stop: tuple[str, ...] = ()
    """Strings that end a choice; they are not part of its text."""
    grammar: Grammar | None = None
    """What each choice's text has to look like."""
    echo: bool = False
    """Task.COMPLETE: the prompt's text comes first."""
    suffix: str = ""
    """Task.COMPLETE: what follows the text that is asked for (fill in the middle)."""
    begin: bool = True
    """Task.TOKENIZE: a prompt has the tokens that the tokenizer puts around every one."""
    seed: int | None = None
    """As the client gave it; choice i samples with seed + i. None: random for each choice."""
    template_variables: dict[str, Any] = {}
    """Extra variables for the chat template (`chat_template_kwargs`), where the operator allows."""
    tools: tuple[dict[str, Any], ...] = ()
    """Task.CHAT: what the model may call, each as chat templates take it:
    {"type": "function", "function": {"name", "description", "parameters": a JSON schema}}."""
    must_call: tuple[str, ...] = ()
    """Names of tools; the answer is a call of one of them, or calls. Empty: the model decides."""
    parallel_calls: bool = True
    """The answer may have several calls."""
    reasoning: bool = True
    """Tell reasoning apart from text, where the model's marks are known."""
    reasoning_effort: str | None = None
    """For the chat template; "none" asks it not to let the model think."""
    thinking_budget: int | None = None
    """Tokens of reasoning at most."""
    timeline: bool = False
    """Send the token timeline with the final Chunk."""
    tenant: str = ""
    """Who asks; salts the prefix cache so that tenants cannot probe each other's prompts."""


class Token(Struct, frozen=True):
    """One token with its log-probability, in output order."""

    id: int
    text: str
    data: bytes
    """The token's own bytes; `text` may hold U+FFFD where a character is split over tokens."""
    logprob: float | None
    """None for the first token of a prompt."""
    top: tuple[Token, ...] = ()
    """The likeliest alternatives, best first."""


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens by class. `prompt` counts each prompt once, however many choices it has."""

    prompt: int = 0
    cached: int = 0
    """Prompt tokens read from the prefix cache; part of `prompt`."""
    output: int = 0
    reasoning: int = 0
    """Part of `output`."""


class Timings(Struct, frozen=True, kw_only=True):
    """Where a request's time went, in seconds. The first choice speaks for the request."""

    tokenize: float = 0.0
    """arrival to tokenized (template included)"""
    queue: float = 0.0
    """tokenized to admitted by the scheduler"""
    prefill: float = 0.0
    """admitted to first token"""
    decode: float = 0.0
    """first to last token"""
    total: float = 0.0
    """arrival to last token"""
    first_token: float = 0.0
    """arrival to first token"""


class Event(Struct, frozen=True, array_like=True):
    """Something that happened to a sequence, other than a token."""

    name: str
    """arrival, tokenized, queued, admitted, prefill, preempted, replayed, finished"""
    time: float
    tokens: int = 0
    """prefill: prompt tokens computed; admitted: tokens found in the prefix cache."""
    step: int = 0


class TokenTime(Struct, frozen=True, array_like=True):
    """When an output token came and what it shared its step with."""

    time: float
    step: int
    batch: int
    """sequences in the step"""
    prefill: int
    """prompt tokens of any sequence computed in the same step"""


class Timeline(Struct, frozen=True):
    """The whole story of one choice."""

    index: int
    events: tuple[Event, ...]
    tokens: tuple[TokenTime, ...]


class CallPiece(Struct, frozen=True, kw_only=True):
    """Some of a tool call: first its id and name, then its arguments in pieces."""

    index: int
    """of the call in its choice"""
    id: str = ""
    name: str = ""
    arguments: str = ""
    """JSON text; the pieces of a call joined are one object, unless the answer ends too early"""


class Chunk(Struct, frozen=True, kw_only=True):
    """One piece of the answer.

    A Runtime yields any number of Chunks for each choice, the last of a choice with `finish`;
    and then exactly one with `usage`, which ends the stream and belongs to no choice.
    """

    index: int = 0
    text: str = ""
    reasoning: str = ""
    """What the model thinks before it answers, where that is told apart."""
    calls: tuple[CallPiece, ...] = ()
    tokens: tuple[Token, ...] = ()
    """Filled when log-probabilities were asked for."""
    prompt_tokens: tuple[Token, ...] = ()
    """On a choice's first Chunk when prompt log-probabilities were asked for; Task.TOKENIZE."""
    finish: Finish | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended the choice."""
    usage: Usage | None = None
    timings: Timings | None = None
    timelines: tuple[Timeline, ...] = ()


class TierStats(Struct, frozen=True, kw_only=True):
    """What became of the blocks that the KV cache's pool evicted."""

    evicted_blocks: int = 0
    memory_bytes: int = 0
    """of blocks kept in memory"""
    memory_tokens: int = 0
    """that came back from there"""
    disk_bytes: int = 0
    """of blocks kept on disk"""
    disk_tokens: int = 0
    """that came back from there"""


class DraftStats(Struct, frozen=True, kw_only=True):
    """What the draft model did for all sequences."""

    tokens: int = 0
    """guesses of its that were computed"""
    accepted: int = 0
    """of those, right"""
    seconds: float = 0.0
    """that it computed"""


class EngineStats(Struct, frozen=True, kw_only=True):
    """Counters since the Worker started and gauges of now, as one Worker reports them."""

    running: int = 0
    waiting: int = 0
    blocks: int = 0
    """KV cache blocks in all"""
    blocks_used: int = 0
    """held by running sequences"""
    blocks_cached: int = 0
    """held by nobody, still readable by the prefix cache"""
    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    """prompt tokens of admitted sequences, cached ones included"""
    cached_tokens: int = 0
    """of those, read from the prefix cache (hits; prompt_tokens are the queries)"""
    output_tokens: int = 0
    drafts: int = 0
    """times that a sequence's step computed guesses"""
    draft_tokens: int = 0
    """guesses computed"""
    accepted_tokens: int = 0
    """of those, right: output tokens that took no step of their own"""
    prefill_seconds_per_token: float = 0.0
    """learned marginal cost; 0 before the first step"""
    decode_seconds_per_token: float = 0.0
    """learned cost of one more sequence in a step"""
    step_seconds: float = 0.0
    """learned fixed cost of a step"""
    tier: TierStats = TierStats()
    draft_model: DraftStats = DraftStats()


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What is known of a loaded model."""

    name: str
    family: str
    """Hugging Face `model_type`"""
    parameters: int
    format: str
    """float32, bf16, int8 or int4"""
    context: int
    vocabulary: int
    weight_bytes: int
    kv_bytes: int
    max_running: int
    created: int
    """Unix time of loading"""
    parent: str = ""
    """the model that an adapter changes; empty for a model"""
    digest: str = ""
    """sha256 over the checkpoint's files, where the catalog has it"""


class Runtime(Protocol):
    """Anything that answers a Request."""

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Stream the answer. Closing the generator cancels the work within one engine step.

        Raises a `mainspring.errors.MainspringError` before or instead of any Chunk.
        """
        ...
