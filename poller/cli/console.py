"""How commands print for people."""

from rich.console import Console

_PIPED_WIDTH = 160


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: never wrapped, so that paths can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def for_tables() -> Console:
    """Make a console that is wide enough for tables also where it is a pipe."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console
