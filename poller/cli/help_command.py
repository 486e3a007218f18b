"""`poller help`: the manual in the terminal."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.padding import Padding
from rich.table import Table
from rich.theme import Theme

from poller import manual
from poller.cli.console import for_tables, say, table

_READABLE_WIDTH = 100


class _WholeTable(TableElement):
    """Break long words over lines; rich would cut them off."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in super().__rich_console__(console, options):
            if isinstance(part, Table):
                for column in part.columns:
                    column.overflow = "fold"
            yield part


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
