"""Names are looked up as the system does it, and silent servers delay nobody else."""

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from poller.client.resolver import MOST, NotLookedUp, Resolver
from tests.integration.at_work import until

HOST = "efax.example"
FOUND = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::7", 443, 0, 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 443)),
]


class NameServers:
    """What getaddrinfo asks: silent until they answer."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[tuple[Any, ...]] = []
        self.found: list[Any] | Exception = FOUND

    def getaddrinfo(self, *asked: Any) -> list[Any]:
        self.asked.append(asked)
        self.answer.wait(60)
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServers]:
    servers = NameServers()
    monkeypatch.setattr(socket, "getaddrinfo", servers.getaddrinfo)
    yield servers
    servers.answer.set()


async def silent(resolver: Resolver) -> str:
    with pytest.raises(NotLookedUp) as raised:
        await resolver.resolve(HOST, 443)
    return str(raised.value)


def seconds(said: str) -> int:
    return int(said.partition(" for ")[2].split()[0])


async def test_addresses_come_in_the_order_of_the_system(servers: NameServers) -> None:
    servers.answer.set()
    resolver = Resolver("main")
    places = await resolver.resolve(HOST, 443, socket.AF_UNSPEC)
    assert [(place["host"], place["family"]) for place in places] == [
        ("2001:db8::7", socket.AF_INET6),
        ("192.0.2.7", socket.AF_INET),
    ]
    assert {(place["hostname"], place["port"]) for place in places} == {(HOST, 443)}
    assert servers.asked == [
        (HOST, 443, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG)
    ]
    await resolver.close()


async def test_an_address_of_one_link_bears_the_link(servers: NameServers) -> None:
    servers.answer.set()
    servers.found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::7", 443, 0, 1))]
    resolver = Resolver("main")
    (place,) = await resolver.resolve(HOST, 443, socket.AF_UNSPEC)
    assert place["host"] == f"fe80::7%{socket.if_indextoname(1)}"
    await resolver.close()


async def test_silent_name_servers_take_a_few_threads_and_then_a_look_up_fails_at_once(
    servers: NameServers,
) -> None:
    resolver = Resolver("main", within_s=3600)  # nobody would wait for it
    hanging = [asyncio.ensure_future(resolver.resolve(HOST, 443)) for _ in range(MOST)]
    await until(lambda: len(servers.asked) == MOST)
    said = await silent(resolver)
    assert re.fullmatch(r"the name servers have not answered for \d+ seconds; check DNS", said)
    assert len(servers.asked) == MOST
    other = Resolver("other")
    servers.answer.set()
    assert await other.resolve(HOST, 443)
    assert all(await asyncio.gather(*hanging))
    for one in (resolver, other):
        await one.close()


async def test_names_are_found_again_once_the_name_servers_answer(servers: NameServers) -> None:
    resolver = Resolver("main", within_s=0.001)
    await silent(resolver)
    resolver._silent_since = asyncio.get_running_loop().time() - 300
    assert seconds(await silent(resolver)) >= 300
    servers.answer.set()
    resolver._within_s = 60
    await until(lambda: not resolver._threads.all_busy)
    assert await resolver.resolve(HOST, 443)
    servers.answer.clear()
    resolver._within_s = 0.001
    assert seconds(await silent(resolver)) < 300
    servers.answer.set()
    await resolver.close()


async def test_a_name_that_is_nowhere_is_the_systems_own_error(servers: NameServers) -> None:
    servers.answer.set()
    servers.found = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    resolver = Resolver("main")
    with pytest.raises(socket.gaierror):
        await resolver.resolve(HOST, 443)
    await resolver.close()


async def test_resolver_reports_that_it_cannot_start_a_thread(
    servers: NameServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert await silent(Resolver("main")) == "cannot start a thread for names of main"
