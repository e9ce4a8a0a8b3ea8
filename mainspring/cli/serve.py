"""`mainspring serve`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mainspring import __version__
from mainspring.cli.command import command
from mainspring.cli.render import heading
from mainspring.cli.settings import config_from, setting_options
from mainspring.config import Config, ModelConfig
from mainspring.registry import EMBEDDED, resolve

__all__ = ["serve"]

EXAMPLES = """
mainspring serve                                     the embedded model on 127.0.0.1:8000
mainspring serve Qwen/Qwen2.5-0.5B-Instruct --quantize int8
mainspring serve chat=./checkpoint mainspring-guide  a directory named "chat", and another
MAINSPRING_API_KEY=secret mainspring serve --host 0.0.0.0
"""
LOCAL = {"127.0.0.1", "localhost", "0.0.0.0"}
"""hosts at which `mainspring run` finds the server by itself"""
QUESTION = "how do I add an API key?"


@command(
    "serve",
    examples=EXAMPLES,
    params=[*setting_options(Config), *setting_options(ModelConfig)],
)
@click.argument("models", nargs=-1)
@click.option("--config", "file", metavar="FILE", help="TOML file with settings.")
def serve(models: tuple[str, ...], file: str | None, **flags: Any) -> None:
    """Serve MODELS over HTTP, in the OpenAI dialect.

    A model is a name of `mainspring list`, the directory of a Hugging Face checkpoint, or
    NAME=DIRECTORY. Without any: those of the settings, else the embedded mainspring-guide.

    Every flag is also a variable (--max-queue is MAINSPRING_MAX_QUEUE) and a line of the --config
    file. API keys come from MAINSPRING_API_KEY or the file, never from a flag.
    """
    config = config_from({**flags, "models": models or None}, file=file)
    home = Path(config.home)
    names = [resolve(model, home).name for model in config.models or (EMBEDDED,)]
    from mainspring import app

    app.serve(config, on_ready=lambda address: click.echo(greeting(config, names, address)))


def greeting(config: Config, names: Sequence[str], address: str) -> str:
    """What to try, once the server is ready at `address` (http://host:port)."""
    name = names[0]
    port = address.rpartition(":")[2].rstrip("/")
    elsewhere = "" if port == "8000" else f" --port {port}"
    if config.host not in LOCAL:
        elsewhere += f" --host {config.host}"
    key, imports, header = '"none"', "", ""
    if config.api_keys == (os.environ.get("MAINSPRING_API_KEY"),):
        key, imports = 'os.environ["MAINSPRING_API_KEY"]', "import os\n\n  "
        header = ' -H "Authorization: Bearer $MAINSPRING_API_KEY"'
    elif config.api_keys:  # of several, or of the config file
        key, header = '"KEY"', ' -H "Authorization: Bearer KEY"'
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}'
    return f"""\
{heading(f"Mainspring {__version__}")} serves {", ".join(names)} on {address}

Try:
  mainspring run {shlex.quote(name)} "{QUESTION}"{elsewhere}

  curl {address}/v1/chat/completions{header} \\
    -H 'Content-Type: application/json' \\
    -d '{body}'

  {imports}from openai import OpenAI

  client = OpenAI(base_url="{address}/v1", api_key={key})
  question = {{"role": "user", "content": "{QUESTION}"}}
  answer = client.chat.completions.create(model="{name}", messages=[question])
  print(answer.choices[0].message.content)

Stop it with ctrl-c."""
