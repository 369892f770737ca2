"""JSON as it comes over the network, with a limit on the values that become Python objects."""

from __future__ import annotations

import json
import math
from typing import Any

from tf_covid.server.errors import InvalidArgument, TooLarge

#: Most values and lists of a body that become Python objects, some 50 bytes each. A scan of
#: 512×512 pixels has more in its eighth slice: it comes as bytes.
MAX_VALUES = 2_000_000


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """The object in a request's body; NaN and Infinity are allowed, as in TF Serving.

    Raises:
        InvalidArgument: If it is not a JSON object, or is nested too deeply.
        TooLarge: If it holds more than `MAX_VALUES` values.
    """
    if not body:
        raise InvalidArgument("JSON Parse error: The document is empty")
    # Each of these begins a value or a list; base64 holds none of them.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
        raise TooLarge(
            f"a body of JSON holds at most {MAX_VALUES} values: send hu_bytes"
            " (base64 of int16, signature serving_bytes) or gRPC"
        )
    try:
        value = json.loads(body.decode("utf-8"), parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InvalidArgument("JSON Parse error: is not UTF-8") from error
    except RecursionError as error:
        raise InvalidArgument("JSON Parse error: is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except ValueError as error:  # a number that is too long, or too large
        raise InvalidArgument("JSON Parse error: Number too big to be stored in double.") from error
    if not isinstance(value, dict):
        raise InvalidArgument("JSON Value: Is not object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(text)
    return value
