"""Read a list that is no snapshot to its end, page by page, and notice when it moved meanwhile.

The list may shift between two pages, the page cap is the server's own, and a proxy may drop the
paging headers. So each page after the first begins a few records before the end of what was read,
and what it begins with says what happened in between:

- It begins with those records: nothing moved. When nothing follows them, that was the end.
- They come later in the page: records were inserted before them. Reading goes on behind them, and
  afterwards the list is read again, because what was inserted is in pages that were read before.
- They are not there: something was deleted, and what moved up may have been skipped. The list is
  read again from the beginning.
- It begins with the record that an earlier page began with: the offset is ignored, or exactly as
  many records were inserted as lie between the two. The second such page in a row decides that it
  is ignored. Then this page is all that can be had of the list, and it is the whole list only when
  the server has sent this account a longer page in the same state, or when it is a single record: a
  cap of at least two is taken for granted.

Pages of one record cannot overlap: such a list is read until two readings in a row saw the same. A
single record with nothing behind it is the whole list, for the same reason as above: to read the
list of every user who has one fax again would cost more than a cap of one is likely.
After three new beginnings it is given up, for it moves too fast; a shorter slice moves less. A list
that was only inserted into is then taken as read: what came in late is what the overlap of the
windows is for. Each page must show something new or be the last: after three in a row that do not,
the list is read again. So a list that has an end takes a bounded number of requests.
"""

from collections.abc import Sequence
from enum import Enum, auto

MOST_OVERLAP = 3
MOST_RESTARTS = 3
MOST_PAGES_WITHOUT_NEWS = 3
PAGES_THAT_SHOW_AN_IGNORED_OFFSET = 2
SMALLEST_CAP_WITH_IGNORED_OFFSET = 2


class Step(Enum):
    """What to do after a page: read the one at `Listing.offset` (MORE, RESTART), stop, or halve."""

    MORE = auto()
    DONE = auto()
    RESTART = auto()
    HALVE_SHIFTING = auto()
    HALVE_OFFSET_IGNORED = auto()


class Listing:
    """One slice's list while it is read; `offset` is where the next page begins.

    `seen` are the ids of the present reading, which begins anew with RESTART. `largest_page` is the
    longest page that this account ever sent while it ignored offsets, 0 when it never did: it is
    handed in, and may have grown afterwards.
    """

    def __init__(self, *, largest_page: int = 0) -> None:
        self.largest_page = largest_page
        self.restarts = 0
        self._seen_before: set[str] | None = None
        self._begin()

    def _begin(self) -> None:
        self.offset = 0
        self.seen: set[str] = set()
        self._overlap: list[str] = []
        self._beginnings: set[str] = set()
        self._repeated_pages = 0
        self._pages_without_news = 0
        self._inserted = False
        self._unchecked = False

    def page(self, ids: Sequence[str]) -> Step:
        """Take the page that was read at `offset`, ids in the order of the answer.

        A record without a usable id is left out. That looks like a shift and costs requests, no
        more; whether a list with such records counts as listed is the caller's to say.
        """
        if not ids:
            return self._again() if self._overlap else self._end()
        if self._offset_is_ignored(ids[0]):
            return self._all_there_is(len(ids))
        at = self._find_overlap(list(ids))
        if at is None:
            return self._again()
        if at == 0 and len(ids) == len(self._overlap):
            return self._end()
        return self._read_on(ids, at)

    def _find_overlap(self, ids: list[str]) -> int | None:
        width = len(self._overlap)
        places = range(len(ids) - width + 1)
        return next((at for at in places if ids[at : at + width] == self._overlap), None)

    def _read_on(self, ids: Sequence[str], at: int) -> Step:
        if not self._overlap:
            self._unchecked = self.offset > 0
        self._inserted |= at > 0
        self._pages_without_news += 1
        if not self.seen.issuperset(ids):
            self._pages_without_news = 0
        if self._pages_without_news == MOST_PAGES_WITHOUT_NEWS:
            return self._again()
        return self._move_on(ids)

    def _move_on(self, ids: Sequence[str]) -> Step:
        # half a page at most, so that a server with a small cap is not read one record at a time
        width = min(MOST_OVERLAP, len(ids) // 2)
        self._overlap = list(ids[len(ids) - width :])
        self._beginnings.add(ids[0])
        self.seen.update(ids)
        self.offset += len(ids) - width
        return Step.MORE

    def _offset_is_ignored(self, first: str) -> bool:
        self._repeated_pages = self._repeated_pages + 1 if first in self._beginnings else 0
        return self._repeated_pages == PAGES_THAT_SHOW_AN_IGNORED_OFFSET

    def _all_there_is(self, length: int) -> Step:
        whole = length < max(self.largest_page, SMALLEST_CAP_WITH_IGNORED_OFFSET)
        self.largest_page = max(self.largest_page, length)
        return Step.DONE if whole else Step.HALVE_OFFSET_IGNORED

    def _end(self) -> Step:
        if self._inserted and self.restarts < MOST_RESTARTS:
            return self._again()
        if self._unchecked and self.seen != self._seen_before:
            return self._again()
        return Step.DONE

    def _again(self) -> Step:
        if self.restarts == MOST_RESTARTS:
            return Step.HALVE_SHIFTING
        self.restarts += 1
        self._seen_before = self.seen
        self._begin()
        return Step.RESTART
