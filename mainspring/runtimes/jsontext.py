"""JSON that arrives a character at a time, as text: nothing of it is built."""

from __future__ import annotations

__all__ = ["JsonString", "JsonValue"]

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class JsonValue:
    """Finds the end of a value. It is not checked: brackets and quotes are counted."""

    def __init__(self, first: str) -> None:
        """`first` is the value's first character, and fed already."""
        self._quoted = first == '"'
        self._escaped = False
        self._depth = int(first in "{[")
        self.scalar = not (self._quoted or self._depth)
        """a number or a word, whose end shows only by what follows"""

    def feed(self, character: str) -> bool:
        """Take the next character; False when it ended the value: a scalar's is not part of it."""
        if self.scalar:
            return character not in ",}] \t\r\n"
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = character == "\\"
            self._quoted = character != '"'
        elif character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return self._quoted or self._depth > 0


class JsonString:
    """The text that a JSON string stands for, after its opening quote."""

    def __init__(self) -> None:
        self._escape = ""
        self._high = ""
        """the first half of a character that is written as two escapes"""
        self.open = True

    def feed(self, character: str) -> str:
        """The text that this character completes; `open` is False at the closing quote."""
        if self._escape:
            return self._unescape(character)
        if character == "\\":
            self._escape = character
            return ""
        text, self._high = self._high and "\ufffd", ""
        if character == '"':
            self.open = False
            return text
        return text + character

    def _unescape(self, character: str) -> str:
        self._escape += character
        lost = self._high and "\ufffd"
        if self._escape[1] != "u":
            self._escape = self._high = ""
            return lost + ESCAPES.get(character, character)
        if len(self._escape) < 6:
            return ""
        digits, self._escape = self._escape[2:], ""
        try:
            code = int(digits, 16)
        except ValueError:
            code = 0xFFFD
        if self._high and 0xDC00 <= code < 0xE000:
            high, self._high = ord(self._high), ""
            return chr(0x10000 + ((high - 0xD800) << 10) + code - 0xDC00)
        self._high = chr(code) if 0xD800 <= code < 0xDC00 else ""
        if self._high:
            return lost
        return lost + (chr(code) if not 0xDC00 <= code < 0xE000 else "\ufffd")
