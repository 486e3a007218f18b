"""JSON as the API may send it: UTF-8, no key twice, no NaN."""

import json
import math
from typing import Any

from poller.errors import BadAnswer


def strict_object(body: bytes, answer: str) -> dict[str, Any]:
    """Parse an answer that has to be a JSON object; `answer` names it in the error's sentence."""
    value = strict_value(body, answer)
    if not isinstance(value, dict):
        raise BadAnswer(f"The {answer} answer is not a JSON object.")
    return value


def strict_value(body: bytes, answer: str) -> Any:
    """Parse an answer of any shape; `answer` names it in the error's sentence."""
    try:
        # Decoded here, for json.loads would guess UTF-16 and UTF-32 from bytes.
        return _DECODER.decode(body.decode())
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number of 5,000 digits, `[[[[…`
        raise BadAnswer(f"The {answer} answer is not JSON.") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key comes twice")
    return value


def _finite(text: str) -> float | str:
    """Read a number; one beyond all floats stays text, for as infinity it could not be written again."""
    value = float(text)
    return value if math.isfinite(value) else text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# One for all: json.loads would make one for each answer.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
)
