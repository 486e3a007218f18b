"""Printing: for people, on a terminal or into a pipe, or as JSON."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from poller.status import instant, span
from poller.window import Interval

_PIPED_WIDTH = 160
Row = TypeVar("Row")
Advance = Callable[[float, float | None, str], None]  # done, in all, note


def say(text: str, style: str | None = None) -> None:
    """Print a line unchanged; never wrap it, so that people can copy paths."""
    Console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def for_tables() -> Console:
    """Return a console that is wide enough for tables, also in a pipe."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


def table(
    rows: Iterable[Row],
    columns: Mapping[str, Callable[[Row], str | Text]],
    *,
    texts: int,
    style: Callable[[Row], str] = lambda _: "",
) -> Table:
    """Return a table; its first `texts` columns hold text, the others numbers."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for place, name in enumerate(columns):
        is_text = place < texts
        made.add_column(
            name,
            no_wrap=not is_text,
            overflow="fold" if is_text else "ellipsis",
            justify="left" if is_text else "right",
        )
    for row in rows:
        cells = (cell(row) for cell in columns.values())
        made.add_row(
            *(Text(one) if isinstance(one, str) else one for one in cells), style=style(row)
        )
    return made


def print_figures(figures: Mapping[str, object]) -> None:
    made = Table(show_header=False, box=None)
    for name, value in figures.items():
        made.add_row(name.replace("_", " "), str(value))
    Console().print(made)


def print_json(shown: object, indent: int | None = None) -> None:
    """Print JSON; write times, durations and paths as in all of poller's JSON."""
    print(json.dumps(shown, default=_plain, indent=indent))


def answer(
    shown: object, people: Callable[[], None], *, as_json: bool, indent: int | None = None
) -> None:
    """Print what a command found as JSON, or for people."""
    if as_json:
        print_json(shown, indent)
    else:
        people()


def _plain(value: object) -> Any:
    match value:
        case datetime():
            return instant(value)
        case Interval():
            return span(value)
        case Path():
            return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """Show a progress bar on stderr if that is a terminal, else nothing."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[more]}", markup=False),
    )
    with Progress(
        *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(label, total=None, more="")
        yield lambda done, total, more: bar.update(task, completed=done, total=total, more=more)
