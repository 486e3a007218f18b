"""Parse JSON strictly: UTF-8, no key twice, no NaN."""

import json
import math
from typing import Any

from poller.errors import BadAnswer


def strict_object(body: bytes, answer: str) -> dict[str, Any]:
    """Parse an answer that must be a JSON object; the error's sentence names it by `answer`."""
    value = strict_value(body, answer)
    if not isinstance(value, dict):
        raise BadAnswer(f"The {answer} answer is not a JSON object.")
    return value


def strict_value(body: bytes, answer: str) -> Any:
    """Parse an answer of any shape; the error's sentence names it by `answer`."""
    try:
        # Decode here: json.loads would guess UTF-16 and UTF-32 from bytes.
        return _DECODER.decode(body.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, a number of 5,000 digits, `[[[[…`
        raise BadAnswer(f"The {answer} answer is not JSON.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _finite(text: str) -> float | str:
    """Read a number; keep one beyond all floats as text, because infinity cannot be written to JSON."""
    value = float(text)
    return value if math.isfinite(value) else text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Share one: json.loads would make one for each answer.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
)
