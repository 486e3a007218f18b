"""What the service and its checking process share: the socket, the limits, the result."""

import json
from dataclasses import asdict, dataclass
from typing import Self

from poller.documents import PROBLEMS

SOCKET = 0  # the process receives its requests on this descriptor
MESSAGE_MAX = 4096
_PAGES_MAX = 1 << 31
_ERRNO_MAX = 4096

# Of address space. A whole document of 100 MB needs a quarter of it, interpreter included.
MEMORY_BYTES = 512 << 20
# Of processor time, per document. A whole one of 100 MB needs a tenth of a second.
CPU_S, CPU_S_PER_BYTE = 5, 1e-7
# By the clock, which also runs on a busy machine and a slow disk: for a free process, for starting
# one, and for the document. The first two share one deadline. Together they stay below the two
# minutes after which a storage step counts as hung, and leave time for its fsyncs.
FREE_S, START_S, WALL_S = 20.0, 20.0, 60.0


@dataclass(frozen=True)
class CheckResult:
    """The result of a check.

    `code` is a key of PROBLEMS, or None for a whole document. `errno` means that the file could not
    be read.
    """

    pages: int | None = None
    code: str | None = None
    errno: int | None = None

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Read the answer of a process that has read foreign bytes: distrust it; raises ValueError."""
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
