"""`poller help`: the manual in the terminal."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.theme import Theme

from poller import manual
from poller.cli.console import for_tables, say, table

_READABLE_WIDTH = 100
_MOST_COLUMNS = 3  # with more, wrapped columns are too narrow to read
_UNBOUNDED = 10_000


class _WholeTable(TableElement):
    """Break long words over lines, which rich would cut off; show a table that is too wide as a list."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                width = Measurement.get(console, options.update(width=_UNBOUNDED), part)
                is_wide = len(part.columns) > _MOST_COLUMNS and width.maximum > options.max_width
                if is_wide or width.minimum > options.max_width:
                    yield from self._list()
                    continue
                for column in part.columns:
                    column.overflow = "fold"
            yield part

    def _list(self) -> Iterator[Padding | Text]:
        """Yield each row: its first cell, and below it the other cells, each after its heading."""
        assert self.header is not None
        assert self.header.row is not None
        assert self.body is not None
        names = [cell.content.plain for cell in self.header.row.cells]
        for row in self.body.rows:
            first, *others = (cell.content for cell in row.cells)
            first.overflow = "fold"
            first.stylize("bold")
            yield Text()
            yield first
            for name, cell in zip(names[1:], others, strict=True):
                if cell.plain.strip():
                    yield Padding(
                        Text(f"{name}: ", "italic", overflow="fold").append_text(cell), (0, 0, 0, 2)
                    )


class _Page(Markdown):
    elements: ClassVar = Markdown.elements | {"table_open": _WholeTable}


def help(paths: Sequence[Path], *, topic: str | None) -> int:  # noqa: A001, ARG001 - called by name
    """Show a topic, or list all topics; print Markdown into a pipe."""
    if topic is None:
        _list()
        return 0
    page = manual.text(topic)
    console = Console()
    if not console.is_terminal:
        say(page.rstrip())
        return 0
    console.width = min(console.width, _READABLE_WIDTH)
    console.push_theme(Theme({"markdown.code": "bold cyan"}))  # readable on light and dark
    os.environ.setdefault("LESS", "-FRX")  # keep colours; do not page text that fits
    with console.pager(styles=True):
        console.print(Padding(_Page(page, hyperlinks=False, code_theme="ansi_dark"), (1, 0)))
    return 0


def _list() -> None:
    columns = {"topic": lambda row: row[0], "about": lambda row: row[1]}
    for_tables().print(table(manual.topics().items(), columns, texts=2))
    say("\nRead one with `poller help TOPIC`. `poller COMMAND --help` shows a command's options.")
