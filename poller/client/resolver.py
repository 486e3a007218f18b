"""Look up host names so that silent name servers delay nothing else."""

import asyncio
import socket
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult

from poller.errors import NoThread
from poller.own_threads import OwnThreads

WITHIN_S: Final = 8.0  # glibc asks the second name server after five; connecting takes time too
MOST: Final = 4
_NUMERIC = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


class NotLookedUp(OSError):
    """No name server answered; `str()` says why in a clause."""


class Resolver(AbstractResolver):
    """Asks the system in at most four separate threads.

    getaddrinfo follows /etc/hosts, nsswitch.conf, search domains and gai.conf, like every program
    on the machine; c-ares (aiodns) follows only some of them. But getaddrinfo has no time limit and
    cannot be cancelled: a look-up without an answer keeps its thread, and while all threads are
    busy, further look-ups fail at once.
    """

    def __init__(self, name: str, *, within_s: float | None = None) -> None:
        self._threads = OwnThreads(f"names of {name}", MOST)
        self._within_s = WITHIN_S if within_s is None else within_s
        self._silent_since: float | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of `host` in the system's order, for aiohttp. Raises as `look_up`."""
        return await self.look_up(host, port, family, socket.AI_ADDRCONFIG)

    async def look_up(self, host: str, port: int, family: int, flags: int) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises socket.gaierror, or NotLookedUp after eight seconds."""
        began = asyncio.get_running_loop().time()
        if self._threads.all_busy:
            raise self._silent(began)
        try:
            async with asyncio.timeout(self._within_s):
                found = await self._threads.run(lambda: _found(host, port, family, flags))
        except TimeoutError:
            raise self._silent(began) from None
        except NoThread as error:
            raise NotLookedUp(str(error)) from error
        except socket.gaierror:
            self._silent_since = None
            raise
        self._silent_since = None
        return found

    def _silent(self, began: float) -> NotLookedUp:
        if self._silent_since is None:
            self._silent_since = began
        for_s = asyncio.get_running_loop().time() - self._silent_since
        return NotLookedUp(f"the name servers have not answered for {for_s:.0f} seconds; check DNS")

    async def close(self) -> None:
        """Let the threads end; those of pending look-ups end once an answer arrives."""
        self._threads.close()


def _found(host: str, port: int, wanted: int, flags: int) -> list[ResolveResult]:
    found = socket.getaddrinfo(host, port, wanted, socket.SOCK_STREAM, 0, flags)
    return [
        ResolveResult(
            hostname=host,
            host=_numeric(address),
            port=port,
            family=family,
            proto=proto,
            flags=_NUMERIC,
        )
        for family, _, proto, _, address in found
    ]


def _numeric(address: tuple[Any, ...]) -> str:
    """Return the address as text; a link-local IPv6 address includes its interface."""
    if len(address) == 4 and address[3]:
        return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return str(address[0])
