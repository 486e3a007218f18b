"""The status page in a real browser: it renders, also on a phone, and stays up to date."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from poller.backlog import CatchUp
from poller.config.model import Account, Expect, HttpConfig, SecretRef, User
from poller.ledger import Ledger, streams
from poller.metrics import Metrics
from poller.status import Pace, StoredLately, Surroundings, status
from poller.stream import Direction
from poller.web import Answers, StatusServer
from tests.acceptance.filled_ledger import fill
from tests.acceptance.installation import APP, Installation, account, populated
from tests.efax import Simulator
from tests.faults.troubled import Scene

playwright = pytest.importorskip("playwright.async_api", reason="needs playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
PATIENCE_MS = 60_000
NUMBER, SENDER = "13235551212", "Dr. Jane Roe"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian's package)"),
    pytest.mark.asyncio(loop_scope="module"),  # the browser's
]


@dataclass
class Seen:
    """What a browser did and reported while it showed the page."""

    page: Any
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", lambda one: self.hosts.add(urlsplit(one.url).netloc))
        self.page.on("console", lambda one: self.complaints.append(one.text))
        self.page.on("pageerror", lambda one: self.complaints.append(str(one)))

    async def rows(self, selector: str = "#users tr") -> int:
        return int(await self.page.locator(selector).count())

    async def texts(self, selector: str) -> list[str]:
        found: list[str] = await self.page.locator(selector).all_inner_texts()
        return found

    async def spills(self) -> bool:
        """Whether a person must scroll sideways."""
        return bool(
            await self.page.evaluate(
                "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            )
        )


Opened = Callable[..., AbstractAsyncContextManager[Seen]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    # a container has no user namespaces for the sandbox, and the page is ours
    async with playwright.async_playwright() as tool:
        browser = await tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
def opened(browser: Any) -> Opened:
    """Open a page as somebody does who was never there: no test sees what another left."""

    @asynccontextmanager
    async def opened(url: str, **how: Any) -> AsyncIterator[Seen]:
        async with await browser.new_context(**how) as context:
            seen = Seen(await context.new_page())
            await seen.page.goto(url)
            await seen.page.locator("#users tr").first.wait_for()
            yield seen

    return opened


EXPECTING = User(
    "main", "clinic-0006", APP, "id-of-clinic-0006", expect=Expect(timedelta(minutes=30))
)


@asynccontextmanager
async def served(
    directory: Path, users: int, *, well: bool, begun: CatchUp | None = None
) -> AsyncIterator[str]:
    """The page of a service with this many users, at this address."""
    url = f"sqlite:///{directory}/state/poller.db"
    await fill(url, users, datetime.now(UTC), well=well)
    lately = StoredLately()
    user = replace(EXPECTING, expect=None) if well else EXPECTING
    ward = Account("main", APP, SecretRef("env", "KEY"), users=(user,))
    async with await Ledger.open(url, readonly=True) as ledger:

        async def shown() -> dict[str, Any]:
            around = Surroundings(
                {"usable": True, "reason": None, "free_bytes": 1 << 36},
                paces={"main": Pace(5.0, 4.5, 2.25)},
                accounts=() if well and begun is None else [ward],
                catching_up={"main": begun} if begun else {},
            )
            return await status(ledger, datetime.now(UTC), around, lately) | {"version": "1.2.3"}

        answers = Answers(Metrics("1.2.3"), shown, list, lambda: True)
        server = StatusServer(HttpConfig(port=0), None, answers)
        await server.start()
        try:
            yield f"http://127.0.0.1:{server.port}/"
        finally:
            await server.stop()


async def test_sent_faxes_are_a_row_of_their_own_below_their_user(
    tmp_path: Path, opened: Opened
) -> None:
    async with served(tmp_path, 2, well=True) as url:
        async with await Ledger.open(f"sqlite:///{tmp_path}/state/poller.db") as ledger:
            archiving = [(APP, "id-of-clinic-0000", "main", "clinic-0000")]
            await ledger.write(streams.sync, archiving, datetime.now(UTC), Direction.SENT)
        async with opened(url) as seen:
            assert sorted(await seen.texts("#users td.name")) == [
                *("main/clinic-0000", "main/clinic-0000/sent", "main/clinic-0001")
            ]
            await seen.page.fill("#filter", "sent")
            await seen.page.wait_for_function("document.querySelectorAll('#users tr').length === 1")
            assert await seen.texts("#users td.name") == ["main/clinic-0000/sent"]
            (stored,) = await seen.texts('#users td[data-label="Stored in all"]')
            assert stored == "0"
            assert seen.complaints == []


PROBLEMS = [
    "eFax refuses main/clinic-0000: check the User ID. See `poller help user-refused`.",
    "The last poll of main/clinic-0001 failed: The list answer is not JSON. See `poller help poll-fails`.",
    "1 fax is quarantined (main/clinic-0003): remove the cause, then run `poller retry`. "
    "See `poller help fax-quarantined`.",
    "1 fax is damaged on the disk (main/clinic-0004): run `poller verify --repair`. "
    "See `poller help fax-damaged`.",
    "Some time could not be listed for main/clinic-0005, so faxes may be missing. "
    "See `poller help gap`.",
    "main/clinic-0006 received nothing for longer than expected. Send a test fax, and check that "
    "the number is still theirs. See `poller help nothing-arrives`.",
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("phone", PHONE), ("desktop", DESKTOP)])
async def test_the_page_of_five_users_fits_and_has_all_that_matters(
    tmp_path: Path, name: str, size: dict[str, int], scheme: str, opened: Opened
) -> None:
    async with (
        served(tmp_path, 5, well=True) as url,
        opened(url, viewport=size, color_scheme=scheme) as seen,
    ):
        await seen.page.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page=True)
        assert (tmp_path / f"{name}-{scheme}.png").stat().st_size > 10_000
        assert await seen.texts("#state") == ["all is well"]
        assert await seen.texts("#problems li") == []
        assert await seen.rows() == 5
        numbers = await seen.texts("#accounts td.number")
        assert numbers[:4] == [
            "4.5 of 5 /s", "2.25 /s (50 %)", "5", (await seen.texts(".tile b"))[1],
        ]  # fmt: skip
        assert numbers[4] == "16"  # all that the ledger was filled with
        assert numbers[6] == "0"
        first = seen.page.locator("#users tr").first
        assert await first.locator("td.name").inner_text() == "main/clinic-0000"
        for label, shown in (("Stored in all", "2"), ("Pending", "0"), ("Quarantined", "0")):
            assert await first.locator(f'td[data-label="{label}"]').inner_text() == shown
        assert "ago" in await first.locator('td[data-label="Last poll"]').inner_text()
        drawn = await first.locator(".bar").get_attribute("d")
        assert drawn.count("M") == 2  # two faxes, in different hours
        assert await first.locator(".bars").bounding_box()
        assert not await seen.spills()
        assert "id-of-" not in await seen.page.content()
        assert (seen.hosts, seen.complaints) == ({urlsplit(url).netloc}, [])


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")])
async def test_a_page_that_catches_up_shows_a_bar_and_nothing_red(
    tmp_path: Path, size: dict[str, int], scheme: str, opened: Opened
) -> None:
    # The user that is configured was not polled since the service started, a minute ago.
    started = datetime.now(UTC) + timedelta(hours=1)
    begun = CatchUp(datetime.now(UTC) - timedelta(minutes=1), started, lists=4, stored=0)
    async with (
        served(tmp_path, 7, well=True, begun=begun) as url,
        opened(url, viewport=size, color_scheme=scheme) as seen,
    ):
        await seen.page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert await seen.texts("#state") == ["catching up"]
        assert await seen.texts("#problems li") == []
        (says,) = await seen.texts("#catching")
        assert says.strip() == (
            "main is catching up, less than a minute: 26 of 27 requests are done."
        )
        bar = seen.page.locator("#catching progress")
        assert await bar.evaluate("one => [one.value, one.max]") == [26, 27]
        assert await seen.texts("#accounts .badge") == ["catching up"]
        assert (await seen.texts("#users .badge"))[:2] == ["catching up", "ok"]
        assert await seen.rows(".bad, .warn, #users .alert") == 0
        assert not await seen.spills()
        assert (seen.hosts, seen.complaints) == ({urlsplit(url).netloc}, [])


_COLOURS = """() => {
  const style = getComputedStyle(document.body);
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map((n) => n / 255)
      .map((n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [light(style.backgroundColor), light(style.color)];
}"""


async def test_the_page_is_dark_where_that_is_wanted_and_can_be_read_in_both(
    tmp_path: Path, opened: Opened
) -> None:
    found = {}
    async with served(tmp_path, 1, well=True) as url:
        for scheme in ("light", "dark"):
            async with opened(url, color_scheme=scheme) as seen:
                found[scheme] = await seen.page.evaluate(_COLOURS)
    assert found["light"][0] > 0.7
    assert found["dark"][0] < 0.1
    for colours in found.values():
        assert (max(colours) + 0.05) / (min(colours) + 0.05) > 4.5  # WCAG's AA


async def test_token_that_is_not_accepted_is_not_called_a_service_that_is_stopped(
    tmp_path: Path, opened: Opened
) -> None:
    async with served(tmp_path, 1, well=True) as url, opened(url) as seen:
        answer = {"status": 401, "body": "The token is wanted.", "content_type": "text/plain"}
        await seen.page.route("**/status.json", lambda one: one.fulfill(**answer))
        await seen.page.locator("#problems li").first.wait_for()
        (said,) = await seen.texts("#problems li")
        assert "The service does not accept the token" in said
        assert await seen.texts("#state") == ["no access"]


async def test_the_page_of_a_thousand_users_has_their_troubles_on_top_and_all_on_request(
    tmp_path: Path, opened: Opened
) -> None:
    async with served(tmp_path, 1000, well=False) as url:
        async with opened(url, viewport=PHONE) as seen:
            await seen.page.screenshot(path=tmp_path / "phone.png")
            assert await seen.texts("#state") == ["6 problems"]
            assert await seen.texts("#problems li") == PROBLEMS
            assert await seen.rows() == 50
            assert (await seen.texts("#users .badge"))[:7] == [
                "refused", "quarantined", "damaged", "failing", "gap", "silent", "ok",
            ]  # fmt: skip
            assert not await seen.spills()
            assert (seen.hosts, seen.complaints) == ({urlsplit(url).netloc}, [])
        async with opened(url, viewport=DESKTOP, color_scheme="dark") as seen:
            await seen.page.screenshot(path=tmp_path / "desktop.png")
            assert await seen.rows() == 200
            assert (await seen.texts(".tile b"))[0] == "1,000"
            await seen.page.get_by_role("button", name="Show all 1,000 users").click()
            assert await seen.rows() == 1000
            await seen.page.get_by_role("searchbox").fill("CLINIC-099")
            assert await seen.rows() == 10
            assert not await seen.spills()
            assert (seen.hosts, seen.complaints) == ({urlsplit(url).netloc}, [])


USERS = ("front-desk", "billing", "ward-1", "ward-2", "ward-3")


async def test_an_open_page_follows_the_service_and_says_when_it_is_gone(
    tmp_path: Path, opened: Opened
) -> None:
    async with Simulator() as simulator:
        populated(simulator)
        users = account("")["users"] | {name: {"user_id": name} for name in USERS[2:]}
        for name in USERS[2:]:
            simulator.add_user(APP, name)
        installation = Installation(
            tmp_path, simulator.base_url, {"accounts": {"main": {"users": users}}}
        )
        scene = Scene(installation, simulator)
        url = f"http://127.0.0.1:{scene.port}/"
        async with installation.daemon() as daemon, opened(url, viewport=PHONE) as seen:
            stored = seen.page.locator("#users tr", has_text="ward-2").locator(
                'td[data-label="Stored in all"]'
            )
            assert (await seen.rows(), await stored.inner_text()) == (5, "0")
            simulator.receive(
                APP, "ward-2", completed=simulator.now() - timedelta(minutes=1),
                originating=NUMBER, tsid=SENDER, distinct=False,
            )  # fmt: skip
            await playwright.expect(stored).to_have_text("1", timeout=PATIENCE_MS)
            assert "/s (" in (await seen.texts('td[data-label="Used"]'))[0]
            for private in (NUMBER, SENDER, simulator.apps[APP].token or "-"):
                assert private not in await seen.page.content()
            assert (seen.hosts, seen.complaints) == ({urlsplit(url).netloc}, [])
            assert await daemon.stop() == 0
            await playwright.expect(seen.page.locator("#state")).to_have_text(
                "no answer", timeout=PATIENCE_MS
            )
            assert "The figures below are old." in (await seen.texts("#problems li"))[0]
