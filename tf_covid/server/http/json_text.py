"""JSON as it comes over the network, without a Python object for each number of a scan."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Iterator
from typing import Any

from tf_covid.server.errors import InvalidArgument

#: Most values and lists that become Python objects: some 50 bytes each.
MOST_OBJECTS = 2_000_000

#: Lists of numbers that are at least this long, in bytes, are left as text.
LONG = 4096

#: Most numbers of a row, a list without lists inside; each row becomes Python objects, one row at a
#: time.
MOST_IN_ROW = 65_536

#: From a bracket on: nothing but brackets, numbers and white space. Possessive, and it fits
#: wherever a bracket stands, so that each byte is looked at once.
_SPAN = re.compile(rb"\[[\[\]0-9eE+\-., \t\r\n]*+")
_BRACKET = re.compile(rb"[\[\]]")
_ROW = re.compile(rb"\[[^\[\]]*\]")


class Numbers:
    """A list, or list of lists, of numbers that is still text: it is read a row at a time, into an array.

    Args:
        text: From the first bracket to the one that closes it.
    """

    def __init__(self, text: bytes) -> None:
        self.text = text

    def outline(self) -> Any:
        """The lists around its rows: each row, a list without lists inside, is "", which no number is.

        Raises:
            InvalidArgument: If it is no JSON, or holds too many rows.
        """
        if self.text.count(b"[") > MOST_OBJECTS:
            raise InvalidArgument(f"JSON Parse error: more than {MOST_OBJECTS} lists")
        return _loads(_ROW.sub(b'""', self.text).decode("ascii"))

    def rows(self) -> Iterator[list[Any]]:
        """The rows, in order.

        Raises:
            InvalidArgument: If one is no JSON, or too long.
        """
        for match in _ROW.finditer(self.text):
            if self.text.count(b",", match.start(), match.end()) >= MOST_IN_ROW:
                raise InvalidArgument(
                    f"JSON Parse error: a list of more than {MOST_IN_ROW} numbers"
                )
            yield _loads(match[0].decode("ascii"))

    def objects(self) -> int:
        """Most Python objects that `plain` makes."""
        return self.text.count(b",") + self.text.count(b"[")

    def plain(self) -> Any:
        """The same as lists.

        Raises:
            InvalidArgument: If it is no JSON.
        """
        return _loads(self.text.decode("ascii"))


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """The object in a request's body; NaN and Infinity are allowed, as in TF Serving.

    Returns:
        Values of the `json` module, and `Numbers` for long lists of numbers.

    Raises:
        InvalidArgument: If it is no JSON object, is nested too deeply, or holds too many values.
    """
    if not body:
        raise InvalidArgument("JSON Parse error: The document is empty")
    mark = secrets.token_hex(8)
    pieces: list[bytes | bytearray] = []
    spans: list[Numbers] = []
    end = 0
    for start, stop in _spans(body):
        # In a string this would close it and be followed by a bare word, so it is seen that it was
        # no list.
        pieces += [body[end:start], b'{"%s":%d}' % (mark.encode(), len(spans))]
        spans.append(Numbers(bytes(memoryview(body)[start:stop])))
        end = stop
    if spans:
        try:
            short = b"".join([*pieces, body[end:]])
            return _object(_put_back(_read(short), mark, spans))
        except InvalidArgument:
            pass  # perhaps those brackets stand in a string: slowly, then
    return _object(_read(body))


def _spans(body: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Where long lists of nothing but numbers begin and end."""
    seen = runs = 0
    for match in _SPAN.finditer(body):
        if (runs := runs + 1) > 2 * MOST_OBJECTS:
            return
        if match.end() - match.start() < LONG:
            continue
        depth, start = 0, match.start()
        for bracket in _BRACKET.finditer(body, match.start(), match.end()):
            if (seen := seen + 1) > 2 * MOST_OBJECTS:
                return  # too many lists, which the count of all values will say
            if bracket[0] == b"[":
                start = bracket.start() if depth == 0 else start
                depth += 1
                continue
            depth -= 1
            if depth < 0:
                break
            if depth == 0 and bracket.end() - start >= LONG:
                yield start, bracket.end()


def _read(text: bytes | bytearray) -> Any:
    # Each of these begins a value or a list; base64 holds none of them.
    if text.count(b",") + text.count(b"[") + text.count(b"{") > MOST_OBJECTS:
        raise InvalidArgument(f"JSON Parse error: more than {MOST_OBJECTS} values")
    try:
        return _loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidArgument("JSON Parse error: is not UTF-8") from error


def _put_back(value: Any, mark: str, spans: list[Numbers]) -> Any:
    """Replace every marked place, in place, without recursion."""
    holder = [value]
    waiting: list[Any] = [holder]
    while waiting:
        part = waiting.pop()
        for key, inner in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(inner, dict) and mark in inner:
                part[key] = spans[inner[mark]]
            elif isinstance(inner, (dict, list)):
                waiting.append(inner)
    return holder[0]


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument("JSON Value: Is not object")
    return value


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_float=_finite)
    except RecursionError as error:
        raise InvalidArgument("JSON Parse error: is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except ValueError as error:  # a number that is too long, or too large
        raise InvalidArgument("JSON Parse error: Number too big to be stored in double.") from error


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(text)
    return value
