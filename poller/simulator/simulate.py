"""`poller simulate`: run the simulated eFax, and print a configuration for it."""

import argparse
import asyncio
import contextlib
import errno
import os
import secrets
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TextIO, TypeVar

from yarl import URL

from poller.errors import CannotStart, UsageError

from . import faults
from .faults import Fault, Faults
from .server import Simulator
from .state import Fax
from .switches import Switches

T = TypeVar("T")

DESCRIPTION = """\
Serves the eFax Enterprise API on 127.0.0.1 with made-up faxes: real black and white pages, as PDF
and as TIFF. It prints a configuration for poller on stdout, and a line for each arriving fax on
stderr. It ends on Ctrl-C, SIGTERM or after --duration.

If you send a fax to the number of one of its users, that user receives it.

  poller simulate --users 3 --arrivals-per-minute 20 >sim.yaml   # in one terminal
  head sim.yaml                                                  # shows what to export
  poller -c sim.yaml run                                         # in another one
"""


def epilog() -> str:
    return f"""\
switches, --switch NAME=VALUE (the first value is the default):
{Switches.describe()}

faults, --fault EFFECT[@CALL,CALL][+RETRY_AFTER]=WHEN:
  WHEN is 5% (at random), every:7 (each seventh request), first:3 (the first three), fax:10 (always,
  for each tenth fax) or always. CALL is one of {", ".join(faults.CALLS[:7])},
  {", ".join(faults.CALLS[7:])}.
  e.g. --fault 500@image=5%  --fault 429@list+30=every:20  --fault cut-document=fax:10
{faults.describe()}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `simulate`; also set the parser's description and epilog."""
    parser.description, parser.epilog = DESCRIPTION, epilog()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    count, amount = _number(1, 100_000), _number(0, 1e6, float)
    port, backlog = _number(0, 65_535), _number(0, 1_000_000)
    arriving = "how many faxes arrive, at random times, for random users (6; 0 for none)"
    late = "faxes that arrived in the last day before the start (5)"
    sending = "how many faxes users send, at random times (0)"
    told = "post a notice of each fax to this URL on this machine (to paths below it for several App IDs)"
    signed = "a file with the secret that signs the notices"
    limited = "answer 429 above F requests a second per App ID"
    open_point = "how this eFax behaves where eFax's behaviour is undocumented; see below"
    trouble = "a fault and how often it strikes; see below"
    add("--port", type=port, default=0, metavar="N", help="port on 127.0.0.1 (any free one)")
    add("--apps", type=count, default=1, metavar="N", help="App IDs, each an account (1)")
    add("--users", type=count, default=3, metavar="N", help="users of each App ID (3)")
    add("--arrivals-per-minute", type=amount, default=6.0, metavar="F", help=arriving)
    add("--backlog", type=backlog, default=5, metavar="N", help=late)
    add("--sent-per-hour", type=amount, default=0.0, metavar="F", help=sending)
    add("--hook", metavar="URL", help=told)
    add("--hook-secret-file", type=Path, metavar="FILE", help=signed)
    add("--rate", type=amount, metavar="F", help=limited)
    add("--burst", type=count, default=12, metavar="N", help="burst that --rate allows (12)")
    # Not a fixed seed: a poller that knows the fax ids of one run would ignore those of the next.
    add("--seed", type=int, metavar="N", help="the same seed gives the same data (default: random)")
    for name, read, meta, text in (
        ("--switch", _switch, "NAME=VALUE", open_point),
        ("--fault", Fault.parse, "NAME=WHEN", trouble),
    ):
        add(name, type=_in_a_sentence(read), action="append", default=[], metavar=meta, help=text)
    add("--duration", type=amount, metavar="S", help="end after this many seconds")


async def run(args: argparse.Namespace) -> int:
    """Run the simulator until a signal ends it. Raises CannotStart if the port is taken."""
    simulator = Simulator(
        port=args.port,
        switches=Switches.parse(args.switch),
        faults=Faults(rules=tuple(args.fault)),
        rate=args.rate or None,
        burst=args.burst,
        seed=secrets.randbits(32) if args.seed is None else args.seed,
    )
    keys = populate(simulator, apps=args.apps, users=args.users, backlog=args.backlog)
    if args.hook:
        _tell_hook(simulator, args.hook, args.hook_secret_file)
    try:
        await simulator.start()
    except OSError as error:
        why = "it is taken" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
        raise CannotStart(f"port {args.port} on 127.0.0.1 cannot be used: {why}") from error
    try:
        _print(sys.stdout, configuration(simulator, keys, args.hook_secret_file))
        await _until_ended(simulator, args)
    finally:
        await simulator.stop()
    return 0


def populate(simulator: Simulator, *, apps: int, users: int, backlog: int) -> dict[str, str]:
    """Set up App IDs, users and a backlog of the last day; return each App ID's key."""
    # The keys are truly random: other users of the machine may reach the simulator's port.
    keys = {f"simulated-app-{app}": secrets.token_urlsafe(18) for app in range(1, apps + 1)}
    numbered = 0
    for app_id, key in keys.items():
        simulator.add_app(app_id, key)
        for user in range(1, users + 1):
            numbered += 1
            number = f"1{8_005_550_000 + numbered}"
            simulator.add_user(app_id, f"{app_id}-user-{user:03}", number=number)
    now = simulator.now()
    ages = sorted((simulator.random.uniform(60, 86_000) for _ in range(backlog)), reverse=True)
    for age_s in ages:
        simulator.receive_somewhere(completed=now - timedelta(seconds=age_s))
    return keys


def _tell_hook(simulator: Simulator, url: str, secret_file: Path | None) -> None:
    if secret_file is None:
        raise UsageError("--hook needs --hook-secret-file")
    if not url.rstrip("/").partition("://")[2].partition("/")[2]:
        raise UsageError("--hook: the address needs a path; add one such as /efax/main")
    try:
        secret = secret_file.read_text().strip()
        for app_id in simulator.apps:
            own = f"{url.rstrip('/')}/{app_id}" if len(simulator.apps) > 1 else url
            simulator.hook(app_id, own, secret)
    except OSError as error:
        raise UsageError(f"{secret_file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"--hook: {error}") from None


def configuration(
    simulator: Simulator, keys: dict[str, str], hook_secret: Path | None = None
) -> str:
    """Return a poller's configuration for this simulator, preceded by the variables to export."""
    lines = [
        f"# The simulated eFax runs at {simulator.base_url}.",
        "# This is a configuration for poller. Before you start poller, run:",
        *(f"#   export {_variable(app_id)}={key}" for app_id, key in keys.items()),
        "accounts:",
    ]
    for app_id in keys:
        lines += [
            f"  {app_id}:",
            f"    base_url: {simulator.base_url}",
            f'    app_id: "{app_id}"',
            f"    api_key: {{env: {_variable(app_id)}}}",
        ]
        if simulator.rate is not None:
            burst = max(1, simulator.burst - 2)
            lines.append(f"    limits: {{requests_per_second: {simulator.rate:g}, burst: {burst}}}")
        if hook := simulator.hooks.get(app_id):
            secret = f"{{file: {(hook_secret or Path()).resolve()}}}"
            lines.append(f"    webhook: {{path: {URL(hook.url).path}, secret: {secret}}}")
        lines.append("    users:")
        for count, (user_id, box) in enumerate(simulator.apps[app_id].users.items(), start=1):
            lines.append(f'      user-{count:03}: {{user_id: "{user_id}", number: "{box.number}"}}')
    if listeners := {URL(hook.url).authority for hook in simulator.hooks.values()}:
        lines.append(f'webhook: {{listen: "{min(listeners)}"}}')
    lines += [
        "storage: {directory: simulated/faxes, min_free: 64MiB}",
        'state: {url: "sqlite:///simulated/state/poller.db"}',
    ]
    return "\n".join(lines)


def _variable(app_id: str) -> str:
    return app_id.upper().replace("-", "_") + "_KEY"


async def _until_ended(simulator: Simulator, args: argparse.Namespace) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    at_work = [
        asyncio.create_task(simulator.arrivals(args.arrivals_per_minute, _tell)),
        asyncio.create_task(simulator.departures(args.sent_per_hour)),
        asyncio.create_task(simulator.keep_posting()),
    ]
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), args.duration)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        for task in at_work:
            task.cancel()
        await asyncio.gather(*at_work, return_exceptions=True)


def _tell(fax: Fax) -> None:
    pages = "1 page" if fax.pages == 1 else f"{fax.pages} pages"
    _print(sys.stderr, f"{fax.completed:%H:%M:%S} {fax.user_id} fax {fax.fax_id}, {pages}")


def _print(stream: TextIO, text: str) -> None:
    # The reader may have gone, as in `poller simulate | head`.
    with contextlib.suppress(BrokenPipeError):
        print(text, file=stream, flush=True)


def _in_a_sentence(read: Callable[[str], T]) -> Callable[[str], T]:
    """Make argparse print a ValueError's text instead of "invalid value"."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _number(low: float, high: float, kind: type[float] = int) -> Callable[[str], float]:
    def read(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        whole = "whole number" if kind is int else "number"
        raise ValueError(f"{text!r} is not a {whole} from {low:g} to {high:g}")

    return _in_a_sentence(read)


def _switch(text: str) -> str:
    Switches.parse([text])
    return text
