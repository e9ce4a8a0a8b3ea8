"""Tools: what a request may say of them, and what it means."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from mainspring.errors import BadRequest

__all__ = ["ToolCallFields", "ToolChoiceFields", "ToolFields", "called", "read_tools"]

TOOLS_LIMIT = 1024
ANYTHING: dict[str, Any] = {"type": "object", "properties": {}}

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionFields(Struct, frozen=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolFields(Struct, frozen=True):
    type: str
    function: FunctionFields | None = None


class NamedFields(Struct, frozen=True):
    name: str


class ToolChoiceFields(Struct, frozen=True):
    type: str
    function: NamedFields | None = None


class CallFields(Struct, frozen=True):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCallFields(Struct, frozen=True):
    """A call in the history."""

    function: CallFields | None = None
    id: Annotated[str, Meta(max_length=256)] | None = None
    type: str | None = None


def read_tools(
    tools: list[ToolFields] | None,
    choice: str | ToolChoiceFields | None,
    parallel: bool | None,
) -> dict[str, Any]:
    """The Request's fields `tools`, `must_call` and `parallel_calls`.

    With the choice "none" the model is not told of the tools. Raises BadRequest with the place.
    """
    told = tuple(_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools or ()))
    names = [tool["function"]["name"] for tool in told]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        place = f"tools[{len(names) - 1 - names[::-1].index(twice)}].function.name"
        raise BadRequest(f"{place}: there are two tools named {twice}", param=place)
    must = _must_call(choice, names)
    if choice == "none":
        return {}
    named = isinstance(choice, ToolChoiceFields)
    return {
        "tools": told,
        "must_call": must,
        "parallel_calls": parallel is not False and not named,
    }


def called(call: ToolCallFields, place: str) -> dict[str, Any]:
    """A call of the history as chat templates take it."""
    if call.function is None or call.type not in {None, "function"}:
        raise BadRequest(
            f"{place}.type: only calls of functions are supported", param=f"{place}.type"
        )
    function = {"name": call.function.name, "arguments": call.function.arguments or "{}"}
    return {"id": call.id or "", "type": "function", "function": function}


def _tool(fields: ToolFields, place: str) -> dict[str, Any]:
    if fields.type != "function":
        raise BadRequest(
            f"{place}.type: {fields.type[:40]!r} is not supported; only functions are",
            param=f"{place}.type",
        )
    if fields.function is None:
        raise BadRequest(f"{place}.function: this field is required", param=f"{place}.function")
    function: dict[str, Any] = {"name": fields.function.name}
    if fields.function.description is not None:
        function["description"] = fields.function.description
    function["parameters"] = fields.function.parameters or ANYTHING
    _check_schema(function["parameters"], f"{place}.function.parameters")
    return {"type": "function", "function": function}


def _check_schema(schema: dict[str, Any], place: str) -> None:
    """Refuse what cannot describe arguments; the rest is the model's business."""
    if schema.get("type", "object") != "object":
        raise BadRequest(
            f'{place}.type: arguments are always an object; use "type": "object"',
            param=f"{place}.type",
        )
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise BadRequest(
            f"{place}.properties: expected an object, name to schema", param=f"{place}.properties"
        )
    for name, part in properties.items():
        if not isinstance(part, dict | bool):
            inner = f"{place}.properties.{name[:100]}"
            raise BadRequest(f"{inner}: expected a schema, an object", param=inner)
    required = schema.get("required", [])
    if not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        raise BadRequest(f"{place}.required: expected a list of names", param=f"{place}.required")


def _must_call(choice: str | ToolChoiceFields | None, names: list[str]) -> tuple[str, ...]:
    if choice in {None, "auto", "none"}:
        return ()
    if not names:
        raise BadRequest("tool_choice: there are no tools to choose from", param="tool_choice")
    if choice == "required":
        return tuple(names)
    if isinstance(choice, str) or choice is None or choice.function is None:
        raise BadRequest(
            "tool_choice: expected none, auto, required, or "
            '{"type": "function", "function": {"name": ...}}',
            param="tool_choice",
        )
    if choice.function.name not in names:
        raise BadRequest(
            f"tool_choice.function.name: there is no tool {choice.function.name[:64]!r}",
            param="tool_choice.function.name",
        )
    return (choice.function.name,)
