"""The dead-man's switch: ping a URL while all is well."""

from collections.abc import Callable

import aiohttp

from poller import events
from poller.client import Resolver
from poller.ingest.runtime import Runtime
from poller.log import Episode

_TIMEOUT_S = 10.0


class HeartbeatPinger:
    """Pings only while `is_well`: every user is polled and no fax has failed for a day."""

    def __init__(self, runtime: Runtime, is_well: Callable[[], bool]) -> None:
        self._runtime = runtime
        self._is_well = is_well
        self._emit = runtime.services.emit
        self._episode = Episode()
        self._resolver = Resolver("the heartbeat")

    async def ping(self) -> None:
        url = self._runtime.config.heartbeat.url
        if url is None or not self._is_well():
            return
        try:
            async with self._session() as session, session.get(url) as got:
                got.raise_for_status()
        except Exception as error:  # noqa: BLE001 - an optional ping must not end the service
            # Not aiohttp's own words: they contain the URL, and a person who has it can fake our pings.
            if self._episode.failed():
                status = getattr(error, "status", None)
                self._emit(events.HeartbeatFailed(type(error).__name__, status))
            return
        if failures := self._episode.recovered():
            self._emit(events.HeartbeatRecovered(failures))

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=self._resolver),
            proxy=self._runtime.config.heartbeat.proxy,
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        )
