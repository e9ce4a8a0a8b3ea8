"""The terminal talk: what is kept, cancelled, printed."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from mainspring.cli.conversation import CONTROLS, Conversation, read_question, stats_line
from mainspring.cli.talk import Options, Piece
from mainspring.errors import ContextLength
from mainspring.types import Message


class Echo:
    """Answers with the number of messages and the question; can fail or be cancelled."""

    where = "here"

    def __init__(self) -> None:
        self.seen: list[tuple[Message, ...]] = []
        self.closed = 0

    def ask(self, messages: tuple[Message, ...], options: Options) -> Generator[Piece, None, None]:
        self.seen.append(messages)
        question = messages[-1].content or ""
        try:
            yield Piece(text=f"{len(messages)} ")
            if question == "fail":
                raise ContextLength("the prompt has 9 tokens;\nthe context is 8")
            if question == "cancel":
                raise KeyboardInterrupt
            yield Piece(text=question)
            yield Piece(prompt_tokens=3, output_tokens=2, first_token=0.5, total=1.0)
        finally:
            self.closed += 1

    def close(self) -> None:
        pass


def lines(*given: str) -> Callable[[str], str]:
    """Stands for a person at `input`; then the end of input."""
    left = [*given]

    def read(_: str) -> str:
        if not left:
            raise EOFError
        if (line := left.pop(0)) == "^C":
            raise KeyboardInterrupt
        return line

    return read


def test_questions_and_answers_are_context() -> None:
    talk = Echo()
    conversation = Conversation(talk, Options(), system="be brief")
    conversation.repl(lines("a", "b"))
    assert [(m.role, m.content) for m in talk.seen[1]] == [
        ("system", "be brief"), ("user", "a"), ("assistant", "2 a"), ("user", "b"),
    ]  # fmt: skip


def test_clear_keeps_only_the_system_message() -> None:
    talk = Echo()
    conversation = Conversation(talk, Options(), system="s")
    conversation.repl(lines("a", "/clear", "b"))
    assert [m.content for m in talk.seen[1]] == ["s", "b"]


def test_bye_ends_and_an_unknown_command_is_not_asked(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Echo()
    Conversation(talk, Options()).repl(lines("/help", "/what", "", "/bye", "never"))
    assert talk.seen == []
    out = capsys.readouterr().out
    assert "/clear" in out
    assert "there is no /what" in out


def test_a_path_is_a_question() -> None:
    talk = Echo()
    Conversation(talk, Options()).repl(lines("/etc/hosts is what?"))
    assert len(talk.seen) == 1


def test_a_cancelled_answer_is_kept_as_far_as_it_was_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk = Echo()
    conversation = Conversation(talk, Options())
    conversation.repl(lines("cancel", "next"))
    assert talk.closed == 2
    assert [m.content for m in talk.seen[1]] == ["cancel", "1 ", "next"]
    assert "(cancelled)" in capsys.readouterr().err


def test_an_error_is_one_line_and_forgets_the_question(
    capsys: pytest.CaptureFixture[str],
) -> None:
    talk = Echo()
    conversation = Conversation(talk, Options())
    conversation.repl(lines("fail", "next"))
    assert [m.content for m in talk.seen[1]] == ["next"]
    err = capsys.readouterr().err
    assert err.splitlines() == [
        "mainspring: the prompt has 9 tokens; the context is 8: /clear forgets the talk"
    ]


def test_ctrl_c_at_the_prompt_only_says_how_to_leave(capsys: pytest.CaptureFixture[str]) -> None:
    talk = Echo()
    Conversation(talk, Options()).repl(lines("^C", "a"))
    assert len(talk.seen) == 1
    assert "/bye or ctrl-d leaves" in capsys.readouterr().out


def test_several_lines_between_quotes() -> None:
    assert read_question(lines('"""one', "two", 'three""" rest')) == "one\ntwo\nthree"
    assert read_question(lines('"""one"""')) == "one"
    assert read_question(lines("  plain ")) == "plain"


def test_numbers_after_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    Conversation(Echo(), Options(), stats=True).ask("a")
    assert capsys.readouterr().err == (
        "prompt 3 tokens (0 cached), first token 500.0 ms, output 2 tokens, 2.0 tokens/s, "
        "total 1.0 s\n"
    )
    assert "tokens/s" not in stats_line(Piece(output_tokens=1), 0.1, 0.1)


def test_answers_cannot_steer_the_terminal() -> None:
    text = "a\x1b]0;title\x07b\x9b31mc\r\n\td\x7f"
    assert text.translate(CONTROLS) == "a]0;titleb31mc\n\td"
