"""Read a list to its end, page by page, and notice if it moved meanwhile.

The list may shift between two pages, the server chooses the page size, and a proxy may drop the
paging headers. So each page after the first begins a few records before the end of what was read,
and the first records show what happened in between:

- The page begins with those records: nothing moved. If nothing follows them, this is the end.
- They come later in the page: records were inserted before them. Continue after them, and read the
  list again afterwards, because the inserted records are in pages that were read before.
- They are missing: something was deleted, and records that moved up may have been skipped. Read the
  list again from the beginning.
- The page begins with the record with which an earlier page began: the server ignores the offset, or
  exactly as many records were inserted as lie between the two. If the next page does so too, the
  server ignores the offset. Then this page is all that the server gives. It is the whole list only
  if the server has sent this account a longer page in the same state, or if it is a single record,
  because we assume a page size of at least two.

Pages of one record cannot overlap: read such a list until two readings in a row saw the same. A single
record with nothing after it is the whole list, for the same reason as above: reading the list of every
user with one fax twice would cost more than a page size of one is likely.
After three new beginnings, give up, because the list moves too fast; a shorter slice moves less. If
records were only inserted, the list counts as read: the overlap of the windows covers late arrivals.
Each page must show something new or be the last: after three in a row that do not, read the list
again. So a list that has an end takes a bounded number of requests.
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
    """The list of one slice while it is read; `offset` is where the next page begins.

    `seen` has the ids of this reading; it starts empty after RESTART. `largest_page` is the longest
    page that this account ever sent while it ignored offsets, 0 if it never did; the caller passes
    it in, and it may grow.
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
        """Take the page that was read at `offset`, with ids in the order of the answer.

        Leave out records without a usable id. That looks like a shift and only costs requests; the
        caller decides whether a list with such records counts as listed.
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
        # half a page at most: otherwise a server with small pages would be read one record at a time
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
