"""Chat templates that write tool calls as the families people use do, in our own words."""

from __future__ import annotations

import functools
from typing import Any

from mainspring.runtimes.renderer import compile_template
from mainspring.runtimes.toolformat import Render

HEAD = """{%- if tools %}<|system|>Tools:{% for t in tools %}
{{ t | tojson }}{% endfor %}<|end|>{% endif %}
{%- for m in messages %}
{%- if m.role == "tool" %}<|tool|>{{ m.content }}<|end|>
{%- elif m.role != "assistant" %}<|{{ m.role }}|>{{ m.content }}<|end|>
{%- else %}"""
TAIL = """{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""

HERMES = """<|im_start|>assistant
{% if m.content %}{{ m.content }}{% endif %}
{%- for c in m.tool_calls %}{% if m.content or not loop.first %}{{ "\\n" }}{% endif -%}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
"""
ARGUMENTS = "{{ c.function.arguments | tojson }}"
CALL = f'{{"name": "{{{{ c.function.name }}}}", "arguments": {ARGUMENTS}'
COMMA = '{{ ", " if not loop.first }}'
LLAMA = f"""{{% if m.tool_calls | length > 1 %}}{{{{ raise_exception("one") }}}}{{% endif -%}}
<|assistant|>

{{% for c in m.tool_calls %}}{CALL.replace("arguments", "parameters", 1)}}}
{{%- else %}}{{{{ m.content }}}}{{% endfor %}}<|eot|>"""
MISTRAL = f"""{{% if m.tool_calls %}}[TOOL_CALLS] [
{{%- for c in m.tool_calls %}}{COMMA}{CALL}
{{%- if c.id | length != 9 %}}{{{{ raise_exception("ids have nine characters") }}}}{{% endif -%}}
, "id": "{{{{ c.id }}}}"}}{{% endfor %}}]
{{%- else %}} {{{{ m.content }}}}{{% endif %}}</s>"""
MISTRAL_ARGS = f"""{{{{ m.content or "" }}}}
{{%- for c in m.tool_calls %}}[TOOL_CALLS]{{{{ c.function.name }}}}[ARGS]{ARGUMENTS}{{% endfor -%}}
</s>"""
FUNCTION_TAG = f"""<|assistant|>{{{{ m.content or "" }}}}
{{%- for c in m.tool_calls %}}<function={{{{ c.function.name }}}}>{ARGUMENTS}</function>
{{%- endfor %}}<|eot|>"""
FENCED = """<|Assistant|>{% if m.tool_calls %}{{ m.content if m.content is not none else "" -}}
<|calls▁begin|>
{%- for c in m.tool_calls %}{{ "\\n" if not loop.first }}<|call▁begin|>function<|sep|>
{{- c.function.name + "\\n```json\\n" + c.function.arguments + "\\n```<|call▁end|>" -}}
{% endfor -%}
<|calls▁end|>{% else %}{{ m.content }}{% endif %}<|end▁of▁sentence|>"""
XML = """<|im_start|>assistant
{{ m.content or "" }}
{%- for c in m.tool_calls %}
<tool_call>
<function={{ c.function.name }}>
{% for key, value in c.function.arguments | items -%}
<parameter={{ key }}>
{{ value if value is string else value | tojson }}
</parameter>
{% endfor -%}
</function>
</tool_call>
{%- endfor %}<|im_end|>
"""
ARG_KEYS = """<|assistant|>
{{ m.content or "" }}
{%- for c in m.tool_calls %}
<tool_call>{{ c.function.name }}
{% for key, value in c.function.arguments | items -%}
<arg_key>{{ key }}</arg_key>
<arg_value>{{ value if value is string else value | tojson }}</arg_value>
{% endfor -%}
</tool_call>
{%- endfor %}"""
LISTED = f"""<|assistant|>{{% if m.tool_calls %}}<|tool_call|>[
{{%- for c in m.tool_calls %}}{COMMA}
{{{{- '{{"tool_name"' }}}}{CALL.removeprefix('{"name"').replace("arguments", "parameters", 1)}}}
{{%- endfor %}}]<|/tool_call|>
{{%- else %}}{{{{ m.content }}}}{{% endif %}}<|end|>"""
BARE_LIST = f"""<|assistant|>{{% if m.tool_calls %}}[
{{%- for c in m.tool_calls %}}{COMMA}{CALL}}}{{% endfor %}}]
{{%- else %}}{{{{ m.content }}}}{{% endif %}}<|end|>"""

STYLES = {
    "hermes": HERMES,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mistral_args": MISTRAL_ARGS,
    "function_tag": FUNCTION_TAG,
    "fenced": FENCED,
    "xml": XML,
    "arg_keys": ARG_KEYS,
    "listed": LISTED,
    "bare_list": BARE_LIST,
}


def source(style: str) -> str:
    """The whole template of a style."""
    return HEAD + STYLES[style] + TAIL


@functools.cache
def renderer(template: str) -> Render:
    """A template's text, rendered here: these templates are our own."""
    compiled = compile_template(template)

    async def render(messages: list[dict[str, Any]], variables: dict[str, Any]) -> str | None:
        try:
            return compiled.render(messages=messages, **variables)
        except Exception:  # noqa: BLE001 - a template refuses however it likes
            return None

    return render
