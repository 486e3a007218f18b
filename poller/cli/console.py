"""How commands print: for people on the terminal or into a pipe, or as JSON."""

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
Advance = Callable[[float, float | None, str], None]  # how much of how much, and what else to say


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: never wrapped, so that paths can be copied."""
    Console().print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def for_tables() -> Console:
    """Make a console that is wide enough for tables also where it is a pipe."""
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
    """Make a table; its first columns are `texts`, the others numbers."""
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
    """Print JSON; times, stretches of time and paths in it are written as everywhere."""
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
    raise TypeError(f"{type(value).__name__} has no form in JSON")


@contextmanager
def progress(label: str) -> Iterator[Advance]:
    """A bar on stderr where that is a terminal, else nothing."""
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
