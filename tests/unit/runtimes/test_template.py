"""Chat templates are foreign programs: rendered as Hugging Face does, and kept in their place."""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mainspring.errors import BadRequest, MainspringError, ModelError
from mainspring.runtimes.prompt import Guarded
from mainspring.runtimes.template import ChatTemplate, TemplateFiles, read_template

HELLO = [{"role": "user", "content": "hi"}]


def rendered(source: str, *conversations: Any, **variables: Any) -> list[str | MainspringError]:
    """The rendering of each conversation, one after the other in one process."""

    async def main() -> list[str | MainspringError]:
        template = ChatTemplate(TemplateFiles(source, {"bos_token": "<s>"}))
        told: list[str | MainspringError] = []
        try:
            for messages in conversations or (HELLO,):
                try:
                    told.append(await template.render(Guarded(messages, variables, "\ue123")))
                except MainspringError as error:
                    told.append(error)
        finally:
            await template.stop()
        return told

    return asyncio.run(main())


def test_it_renders_as_hugging_face_does() -> None:
    source = """{{ bos_token }}
{% for m in messages %}
    {%- if m.role == "system" %}{% continue %}{% endif %}
    {% generation %}
[{{ m.role }}] {{ m.content | trim }}
    {% endgeneration %}
{% endfor %}
{{ {"a": "<é>"} | tojson }}{{ [1, 2] | tojson(indent=1) }}{{ missing }}"""
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": " hi "}]
    assert rendered(source, messages) == ['<s>\n[user] hi\n{"a": "<é>"}[\n 1,\n 2\n]']


def test_it_knows_the_date() -> None:
    assert rendered("{{ strftime_now('%Y') }}") == [str(datetime.datetime.now().year)]


def test_its_own_words_reach_the_client() -> None:
    (error,) = rendered("{{ raise_exception('roles must alternate') }}")
    assert isinstance(error, BadRequest) and error.message == "roles must alternate"
    assert error.param == "messages"


def test_a_message_it_cannot_take_is_a_bad_request() -> None:
    (error,) = rendered("{{ messages[0].content + 1 }}")
    assert isinstance(error, BadRequest) and "cannot render" in error.message


def test_an_error_in_it_is_the_models() -> None:
    (error,) = rendered("{% if %}")
    assert isinstance(error, ModelError) and "line 1" in error.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ ''['__class__'] }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ '%s' | format(messages.append) }}{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['os'].system('true') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__.os.popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ joiner.__init__.__globals__.os }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set x = namespace() %}{% set x.__class__ = 1 %}",
        "{{ (messages|map(attribute='__class__'))|list }}",
        "{{ (range(1)|list).__reduce__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ get_flashed_messages.__globals__ }}",
    ],
)
def test_gadgets_reach_nothing(source: str) -> None:
    (told,) = rendered(source)
    if isinstance(told, str):
        # An undefined attribute prints as nothing; a refusal to look is an error.
        assert "class" not in told and "<" not in told and "/" not in told
    else:
        assert isinstance(told, ModelError | BadRequest)


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 'a'.center(10**9) }}",
        "{{ '%1000000000s' | format('a') }}",
        "{{ '{:>1000000000}'.format('a') }}",
        "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}"
        "{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ 10**(10**8) }}",
        "{{ [0] * 10**9 }}",
        "{{ ('a' * 10**6) | wordwrap(1) | length }}",
        "{{ (range(99999) | list * 9999) | sum }}",
        "{{ 'a' * 3000000 }}",
    ],
)
def test_bombs_end_in_time_and_the_next_request_is_served(bomb: str) -> None:
    """Small while it works, bounded when it does not; killed and started again if it must be."""
    source = "{% if messages[0].content == 'boom' %}" + bomb + "{% else %}fine{% endif %}"
    boom = [{"role": "user", "content": "boom"}]
    began = time.monotonic()
    first, error, after = rendered(source, HELLO, boom, HELLO)
    assert (first, after) == ("fine", "fine")
    assert isinstance(error, BadRequest | ModelError), error
    assert "template" in error.message
    assert time.monotonic() - began < 6


def test_a_bomb_takes_little_memory() -> None:
    async def main() -> None:
        template = ChatTemplate(TemplateFiles("{{ 'a' * (messages[0].n) }}", {}))
        try:
            await template.start()
            with pytest.raises(BadRequest, match="memory"):
                await template.render(Guarded([{"n": 200 << 20}], {}, "\ue123"))
            assert template.pid and peak_kib(template.pid) < 128 << 10
            assert resource_limits(template.pid)["Max file size"] == "0"
        finally:
            await template.stop()

    asyncio.run(main())


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(peak)


def resource_limits(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:26].strip(): line[26:].split()[0] for line in lines}


def test_a_long_conversation_is_no_bomb() -> None:
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
    messages = [{"role": "user", "content": " wörter " * 1000} for _ in range(800)]
    (text,) = rendered(source, messages)
    assert isinstance(text, str) and len(text) > 6_000_000


def test_a_killed_process_is_started_again() -> None:
    async def main() -> None:
        template = ChatTemplate(TemplateFiles("{{ messages[0].content }}", {}))
        try:
            await template.start()
            assert template.pid
            os.kill(template.pid, 9)
            results = [await attempt(template) for _ in range(3)]
            assert results[-1] == "hi"
        finally:
            await template.stop()

    async def attempt(template: ChatTemplate) -> str | None:
        return await template.render(Guarded(HELLO, {}, "\ue123"))

    asyncio.run(main())


def test_giving_up_on_a_rendering_ends_it() -> None:
    async def main() -> None:
        source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        template = ChatTemplate(TemplateFiles(source, {}))
        try:
            await template.start()
            pid = template.pid
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(template.render(Guarded(HELLO, {}, "\ue123")), 0.05)
            assert pid and not exists(pid)
        finally:
            await template.stop()

    asyncio.run(main())


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_it_inherits_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAINSPRING_API_KEY", "sesame")

    async def main() -> None:
        template = ChatTemplate(TemplateFiles("x", {}))
        try:
            await template.start()
            assert template.pid and b"sesame" not in environ(template.pid)
        finally:
            await template.stop()

    asyncio.run(main())


def test_a_checkpoint_without_a_template_says_what_to_do() -> None:
    async def main() -> None:
        template = ChatTemplate(TemplateFiles(None, {}))
        await template.start()
        assert template.pid is None
        with pytest.raises(BadRequest, match="/v1/completions"):
            await template.render(Guarded(HELLO, {}, "\ue123"))

    asyncio.run(main())


# The checkpoint's files ---------------------------------------------------------------------------


def files(directory: Path, **contents: Any) -> TemplateFiles:
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name.replace("__", ".")).write_text(text)
    return read_template(directory)


def test_where_a_template_is_found(tmp_path: Path) -> None:
    assert files(tmp_path) == TemplateFiles(None, {})
    config = {"chat_template": "one", "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    found = files(tmp_path, tokenizer_config__json=config)
    assert found == TemplateFiles("one", {"bos_token": "<s>", "eos_token": "</s>"})
    named = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]
    assert files(tmp_path, tokenizer_config__json={"chat_template": named}).source == "a"
    assert files(tmp_path, chat_template__jinja="two").source == "two"
    tokens = files(tmp_path, special_tokens_map__json={"bos_token": "<b>", "pad_token": None})
    assert tokens.variables == {"bos_token": "<b>"}


@pytest.mark.parametrize("content", ["[]", "{", '{"chat_template": 3}', "\x00"])
def test_files_that_make_no_sense_are_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        files(tmp_path, tokenizer_config__json=content)


def test_a_template_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="UTF-8"):
        read_template(tmp_path)


def test_leaving_at_any_moment_of_a_start_leaves_it_usable() -> None:
    """A client may go while the process is started for it, also before we are connected to it."""

    async def main() -> None:
        template = ChatTemplate(TemplateFiles("{{ messages[0].content }}", {}))
        guarded = Guarded([{"role": "user", "content": "hi"}], {}, "\ue100")
        for turns in range(14):
            rendering = asyncio.create_task(template.render(guarded))
            for _ in range(turns):
                await asyncio.sleep(0)
            rendering.cancel()
            await asyncio.gather(rendering, return_exceptions=True)
            if turns % 2:
                assert await template.render(guarded) == "hi"
                await template.stop()
        await template.stop()

    asyncio.run(main())
