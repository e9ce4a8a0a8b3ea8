"""What a chat template tells of the form of a model's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from mainspring.errors import BadRequest
from mainspring.runtimes.calls import Calls
from mainspring.runtimes.reader import Reader
from mainspring.runtimes.reasoning import Marks, learn_marks
from mainspring.runtimes.tokenizer import Tokenizer
from mainspring.runtimes.toolformat import Render, ToolFormat, learn
from mainspring.runtimes.toolgrammar import call_grammar
from mainspring.types import Grammar, Request, Thinking

__all__ = ["Forms", "learn_forms"]


class Forms(Struct, frozen=True):
    """How the model writes reasoning and tool calls; None where that is not known."""

    marks: Marks | None = None
    tools: ToolFormat | None = None
    variables: frozenset[str] = frozenset()
    """of those that we would set by ourselves, the ones that the template reads"""

    def texts(self, request: Request) -> tuple[str, ...]:
        """What the Reader has to see, also where it is written in special tokens."""
        marks = (self.marks.begin, self.marks.end) if self.marks and request.reasoning else ()
        return (*marks, *(self.tools.texts() if self.tools and request.tools else ()))

    def check(self, request: Request) -> None:
        """Raise BadRequest for what the template cannot express."""
        if request.tools and self.tools is None:
            raise BadRequest(
                "tools: the chat template of this model does not say how tools are called; leave "
                "them out, or serve a model whose template does",
                param="tools",
            )
        if request.must_call and request.grammar is not None:
            raise BadRequest(
                f"tool_choice: not together with {request.grammar.field}; leave one of them out",
                param="tool_choice",
            )

    def template_variables(self, request: Request) -> Mapping[str, Any]:
        """What the template is given besides the messages."""
        given: dict[str, Any] = {}
        if request.reasoning_effort is not None:
            given = {"reasoning_effort": request.reasoning_effort}
            if request.reasoning_effort == "none":
                given["enable_thinking"] = False
        given = {name: value for name, value in given.items() if name in self.variables}
        if request.tools:
            given["tools"] = list(request.tools)
        return {**given, **request.template_variables}

    def reader(self, request: Request, prompt: str) -> Reader:
        """For one choice that goes on from the text of a prompt."""
        calls = None
        if request.tools and self.tools:
            calls = Calls(self.tools, _schemas(request), parallel=request.parallel_calls)
        # Held to a form of the client's own, the answer has no place for reasoning.
        marks = self.marks if request.reasoning and request.grammar is None else None
        return Reader(marks, calls, opened=self.opened(prompt))

    def grammar(self, request: Request, prompt: str, tokenizer: Tokenizer) -> Grammar | None:
        """What every choice is held to: the client's own, or calls that must be made."""
        if not (request.must_call and self.tools):
            return request.grammar
        schemas = _schemas(request)
        around = (*self.tools.texts(), *((self.marks.begin, self.marks.end) if self.marks else ()))
        text = call_grammar(
            self.tools,
            {name: schemas[name] for name in request.must_call},
            several=request.parallel_calls,
            marks=self.marks,
            opened=self.opened(prompt),
            special=tokenizer.shown(around),
        )
        return Grammar("lark", text, strict=False, field="tools")

    def thinking(self, request: Request, prompt: str, tokenizer: Tokenizer) -> Thinking | None:
        """The request's thinking budget for the Engine. Raises BadRequest where there is none."""
        if request.thinking_budget is None or request.grammar is not None:
            return None
        begin = tokenizer.added_token(self.marks.begin) if self.marks else None
        end = tokenizer.added_token(self.marks.end) if self.marks else None
        if begin is None or end is None:
            raise BadRequest(
                "thinking_token_budget: this model has no tokens of its own that begin and end "
                "reasoning; leave it out",
                param="thinking_token_budget",
            )
        return Thinking(request.thinking_budget, end, None if self.opened(prompt) else begin)

    def opened(self, prompt: str) -> bool:
        """Whether the prompt's end has begun the reasoning."""
        return self.marks is not None and prompt.rstrip().endswith(self.marks.begin)


def _schemas(request: Request) -> dict[str, dict[str, Any]]:
    """Of the arguments of each tool."""
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in request.tools}


SETTABLE = ("reasoning_effort", "enable_thinking")


async def learn_forms(render: Render, source: str) -> Forms:
    """What the template `source`, which `render` renders, tells."""
    return Forms(
        marks=await learn_marks(render, source),
        tools=await learn(render),
        variables=frozenset(name for name in SETTABLE if name in source),
    )
