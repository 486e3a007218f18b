"""What a process that checks documents says of one; the service asks it on a descriptor."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from poller.documents import PROBLEMS

SOCKET = 3  # that descriptor
MESSAGE_MAX = 4096
_PAGES_MAX = 1 << 31
_ERRNO_MAX = 4096


@dataclass(frozen=True)
class Answer:
    """`code` is a key of PROBLEMS, None for a whole document; `errno` that its file cannot be read."""

    pages: int | None = None
    code: str | None = None
    errno: int | None = None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Take what has read foreign bytes for as foreign; raises ValueError."""
        try:
            said = cls(**json.loads(data))
        except (TypeError, RecursionError) as error:
            raise ValueError from error
        if not said._makes_sense():
            raise ValueError
        return said

    def _makes_sense(self) -> bool:
        if self.errno is not None:
            return _is_within(self.errno, _ERRNO_MAX)
        if self.code is not None and self.code not in PROBLEMS:
            return False
        return (self.pages is None and self.code is not None) or _is_within(self.pages, _PAGES_MAX)


def _is_within(number: object, limit: int) -> bool:
    return type(number) is int and 0 <= number < limit
