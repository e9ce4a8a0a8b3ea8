"""The process that renders one chat template: `python renderer.py FD`, run as a plain script.

A template is a program of the checkpoint's author. It runs here, in Jinja's sandbox, in a process
that holds nothing, may use little memory and time, and that its owner kills when it is late.
Little but jinja2 is imported, so that it is small and starts fast.

Frames in: first {"source", "variables"}, then any number of {"messages", "variables", "mark"}. Out,
one for each: {"text"} or {"error", "kind"}, where kind is `template` (its own fault), `raised`
(raise_exception) or `limit`.
"""

from __future__ import annotations

import datetime
import json
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mainspring.runtimes.confined import MIB, serve

MEMORY = 64 * MIB
"""a rendering may take this much, and so many times its input besides:"""
MEMORY_FACTOR = 16
OUTPUT, OUTPUT_FACTOR = MIB, 8
"""characters of output, or so many times the input's bytes if that is more"""
CPU_SECONDS = 2
MESSAGE_LIMIT = 500


class Raised(Exception):
    """The template called raise_exception."""


class Limit(Exception):
    """The rendering is larger than allowed."""


class Generation(Extension):
    """{% generation %}...{% endgeneration %} marks what the model said; its text is kept as is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Unfolded(CodeGenerator):
    """Computes nothing while compiling: a constant expression can be as large as any other."""

    def _output_child_to_const(self, node: Any, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)


def compile_template(source: str) -> jinja2.Template:
    """The template in an environment as chat templates expect it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        extensions=[loopcontrols, Generation],
    )
    environment.code_generator_class = Unfolded
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment.from_string(source)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a model to read: nothing is escaped for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def raise_exception(message: str) -> None:
    raise Raised(str(message))


def strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def render(template: jinja2.Template, variables: dict[str, Any], mark: str, size: int) -> str:
    """The rendering of a request of `size` bytes. Raises Limit when it grows too large.

    Where the template dumped `mark` as an escape sequence, it is made the character again.
    """
    most = max(OUTPUT, OUTPUT_FACTOR * size)
    pieces: list[str] = []
    length = 0
    for piece in template.generate(variables):
        length += len(piece)
        if length > most:
            raise Limit(f"the chat template wrote more than {most} characters")
        pieces.append(piece)
    return "".join(pieces).replace(json.dumps(mark)[1:-1], mark)


class Renderer:
    """Takes the template with the first frame, and renders it for each of the others."""

    def __init__(self) -> None:
        self._template: jinja2.Template | None = None
        self._shared: dict[str, Any] = {}

    def answer(self, frame: bytes) -> dict[str, str]:
        return answer(partial(self._take, frame))

    def _take(self, frame: bytes) -> str:
        asked = json.loads(frame)
        if self._template is None:
            self._shared = asked["variables"]
            self._template = compile_template(asked["source"])
            return ""
        variables = {**self._shared, **asked["variables"], "messages": asked["messages"]}
        return render(self._template, variables, asked["mark"], len(frame))


def answer(work: Callable[[], str]) -> dict[str, str]:
    """What `work` gives, or which error it was."""
    try:
        return {"text": work()}
    except Raised as error:
        return {"kind": "raised", "error": str(error)[:MESSAGE_LIMIT]}
    except Limit as error:
        return {"kind": "limit", "error": str(error)}
    except (MemoryError, OverflowError):
        return {"kind": "limit", "error": "the chat template needs too much memory"}
    except RecursionError:
        return {"kind": "template", "error": "the chat template is nested too deeply"}
    except jinja2.TemplateSyntaxError as error:
        text = f"the chat template has an error in line {error.lineno}: {error.message}"
        return {"kind": "template", "error": text[:MESSAGE_LIMIT]}
    except SecurityError as error:
        text = f"the chat template does what the sandbox forbids: {error}"
        return {"kind": "template", "error": text[:MESSAGE_LIMIT]}
    except Exception as error:  # noqa: BLE001 - whatever a foreign program raises
        text = f"the chat template cannot render these messages: {error}"
        return {"kind": "raised", "error": text[:MESSAGE_LIMIT]}


if __name__ == "__main__":
    sys.setrecursionlimit(2000)
    renderer = Renderer()
    serve(
        socket.socket(fileno=int(sys.argv[1])),
        renderer.answer,
        renderer.answer,
        memory=lambda size: MEMORY + MEMORY_FACTOR * size,
        seconds=CPU_SECONDS,
    )
