from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mainspring.runtimes.stops import Stops


def run(strings: list[str], pieces: list[str]) -> tuple[str, str | None]:
    stops, text = Stops(strings), ""
    for piece in pieces:
        more, hit = stops.feed(piece)
        text += more
        if hit is not None:
            return text, hit
    return text + stops.end(), None


LETTERS = st.text("abé", max_size=30)


@given(LETTERS, st.lists(st.text("abé", min_size=1, max_size=4), max_size=3), st.randoms())
def test_the_cut_does_not_depend_on_the_pieces(text: str, strings: list[str], random) -> None:
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(5))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run(strings, pieces) == run(strings, list(text)) == run(strings, [text])


@given(LETTERS, st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_first_to_be_complete_ends_the_text(text: str, strings: list[str]) -> None:
    ends = [text.find(s) + len(s) for s in strings if s in text]
    got, hit = run(strings, list(text))
    if not ends:
        assert (got, hit) == (text, None)
    else:
        assert hit is not None and len(got) + len(hit) == min(ends) and text.startswith(got + hit)


@given(LETTERS, st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_no_more_is_held_back_than_needed(text: str, strings: list[str]) -> None:
    stops, out = Stops(strings), ""
    for i, letter in enumerate(text):
        more, hit = stops.feed(letter)
        out += more
        if hit is not None:
            return
        held = text[len(out) : i + 1]
        assert held == "" or any(s.startswith(held) and s != held for s in strings)


def test_text_passes_where_no_stop_counts() -> None:
    stops = Stops(["ab"])
    assert stops.feed("xa") == ("x", None)
    assert stops.skip("b") == "ab"
    assert stops.feed("ab") == ("", "ab")
