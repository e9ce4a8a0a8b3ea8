"""/tokenize and /detokenize as vLLM has them, and fill in the middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conformance.conftest import Server, start, stop
from tests.tiny import tiny_checkpoint, tiny_tokenizer

TEXT = "Grüße, <|user|> 🙂\n"


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.address}{path}", json={"model": "tiny", **body}, timeout=10)


def test_a_text_to_tokens_and_back(server: Server) -> None:
    answer = post(server, "/tokenize", prompt=TEXT, return_token_strs=True).json()
    ids, texts = answer["tokens"], answer["token_strs"]
    assert answer["count"] == len(ids) == len(texts) == 16
    assert answer["max_model_len"] == 512
    assert 257 in ids and texts[ids.index(257)] == "<|user|>"
    assert post(server, "/detokenize", tokens=ids).json() == {"prompt": TEXT}
    assert post(server, "/tokenize", prompt="").json()["tokens"] == []
    assert post(server, "/tokenize", prompt="a").json()["token_strs"] is None


def test_a_conversation_has_the_tokens_that_its_answer_is_charged_for(
    server: Server, client: openai.OpenAI
) -> None:
    messages: Any = [{"role": "user", "content": "hello"}]
    answer = post(server, "/tokenize", messages=messages).json()
    chat = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert chat.usage and answer["count"] == chat.usage.prompt_tokens == 8
    text = post(server, "/detokenize", tokens=answer["tokens"]).json()["prompt"]
    assert text == "<|user|>hello<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        (
            "/tokenize",
            {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
            400,
            "prompt",
        ),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": [{"role": "x", "content": ""}]}, 400, "messages[0].role"),
        ("/tokenize", {"prompt": "a" * 10_000}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "truncate_prompt_tokens": 3}, 400, "truncate_prompt_tokens"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [260]}, 400, "tokens"),
        ("/detokenize", {"tokens": "a"}, 400, "tokens"),
        ("/detokenize", {"model": "none", "tokens": []}, 404, "model"),
    ],
)
def test_refused(server: Server, path: str, body: Any, status: int, param: str) -> None:
    answer = post(server, path, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_fill_in_the_middle(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "coder", vocab_size=264)
    library = tiny_tokenizer()
    library.add_special_tokens(["<fim_prefix>", "<fim_suffix>", "<fim_middle>"])
    library.save(str(folder / "tokenizer.json"))
    server = start([f"coder={folder}"], tmp_path / "log")
    try:
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none") as client:
            fields: Any = {"model": "coder", "max_tokens": 12, "temperature": 0}
            filled = client.completions.create(prompt="a = ", suffix="\nb", **fields)
            # The tiny tokenizer's ids of ASCII are not its bytes.
            answer = post(server, "/tokenize", model="coder", prompt="a = \nb").json()["tokens"]
            marked = [260, *answer[:4], 261, *answer[4:], 262]
            same = client.completions.create(prompt=marked, **fields)
            assert filled.choices[0].text == same.choices[0].text != ""
            assert filled.usage and filled.usage.prompt_tokens == len(marked)
            echoed = client.completions.create(prompt="a = ", suffix="\nb", echo=True, **fields)
            assert echoed.choices[0].text == "a = " + filled.choices[0].text
            with pytest.raises(openai.BadRequestError, match="suffix"):
                client.completions.create(prompt=[1, 2], suffix="b", **fields)
    finally:
        assert stop(server) == 0


def test_without_the_tokens_a_suffix_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no tokens to fill in the middle") as caught:
        client.completions.create(model="tiny", prompt="a", suffix="b")
    assert caught.value.param == "suffix"


def test_they_are_counted_as_requests_of_no_tokens(server: Server) -> None:
    before = server.metric("vllm:prompt_tokens_total")
    post(server, "/tokenize", prompt=TEXT)
    assert server.metric("vllm:prompt_tokens_total") == before
