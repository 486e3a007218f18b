"""The meaning of a good configuration: defaults, levels, merging, paths, kinds of values."""

import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.config import load, reference
from poller.config.build import Builder, Outside, merged
from poller.config.document import parse
from poller.config.keys import Leaf, Tree, tree
from poller.config.model import (
    UTC_ZONE,
    Account,
    AccountHook,
    Canary,
    Config,
    Delete,
    During,
    Expect,
    Heartbeat,
    HookTls,
    HttpConfig,
    Limits,
    LogConfig,
    Poll,
    RetryConfig,
    SecretRef,
    Sent,
    StateConfig,
    StorageConfig,
    Sweep,
    User,
    WebhookConfig,
)
from poller.config.position import Node, Problems, Source
from poller.config.values import WrongValueError, size_text
from poller.errors import ConfigError
from poller.stream import Direction
from tests.exhaustive import often

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "tests" / "data" / "configs" / "good"
EXAMPLE = ROOT / "config" / "poller.example.yaml"

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def users(config: Config, account: int = 0) -> dict[str, User]:
    return {user.name: user for user in config.accounts[account].users}


def from_text(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "poller.yaml"
    file.write_text((GOOD / "minimal.yaml").read_text() + text)
    return load([file])


def test_minimal_configuration_has_the_defaults_of_the_contract() -> None:
    config = load([GOOD / "minimal.yaml"])
    user = User("main", "front-desk", app_id="12345", user_id="0f8a")
    key = SecretRef("credential", "efax-api-key")
    assert config == Config(
        accounts=(Account("main", "12345", key, users=(user,)),),
        storage=StorageConfig(Path("/var/lib/poller/faxes")),
    )
    assert config.files == (GOOD / "minimal.yaml",)
    assert config.users[0].names == ("main", "front-desk")
    assert config.state_directory == Path("/var/lib/poller/state")


def test_everything_that_can_be_set_is_set() -> None:
    config = load([GOOD / "everything.yaml"])
    account = config.accounts[0]
    assert account.base_url == "https://gateway.example:8443/efax"
    assert account.app_id == "00123"
    assert account.api_key == SecretRef("file", str(GOOD / "secrets" / "efax.key"))
    assert account.limits == Limits(2.5, 16, 4)
    assert account.proxy == "http://proxy.example:3128"
    assert account.ca_file == GOOD / "company-ca.pem"
    assert config.storage == StorageConfig(
        GOOD.parent / "faxes", path="{received:%Y}/{fax_id}", min_free=512 << 20, consumers="move"
    )
    assert config.state == StateConfig(GOOD / "state", f"sqlite:///{GOOD}/state/ledger.db")
    assert config.state_directory == GOOD / "state"
    assert config.state_url == f"sqlite:///{GOOD}/state/ledger.db"
    assert config.retry == RetryConfig(3, timedelta(milliseconds=500), timedelta(hours=2), 3 * DAY)
    assert config.evidence_max == 10 << 10
    assert config.heartbeat == Heartbeat(
        "https://hc.example/ping/1?x=y", timedelta(minutes=1), "http://proxy.example:3128"
    )
    assert config.log == LogConfig("debug", "json")
    assert config.http == HttpConfig("::", 0, SecretRef("env", "STATUS_TOKEN"))
    assert account.webhook == AccountHook("/efax/~main_1", SecretRef("env", "HOOK_SECRET"))
    key = SecretRef("file", str(GOOD / "secrets" / "hook.key"))
    assert config.webhook == WebhookConfig("::", 8443, HookTls(GOOD / "company-ca.pem", key))
    assert config.drain == timedelta(seconds=10)


def test_the_page_on_several_nodes_shows_a_good_configuration(tmp_path: Path) -> None:
    page = (ROOT / "systemd" / "NODES.md").read_text()
    (shown,) = re.findall("^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    file = tmp_path / "poller.yaml"
    file.write_text(shown)
    config = load([file])
    assert config.state_url.startswith("postgresql://poller@db1,db2/poller?sslmode=verify-full")
    assert config.storage.url == "s3://faxes/poller"
    assert config.log.key == SecretRef("file", "/etc/poller/log-key")


def test_every_secret_is_named_and_only_the_key_of_tls_has_many_lines() -> None:
    secrets = load([GOOD / "everything.yaml"]).secrets
    assert [(one.key, one.is_pem) for one in secrets] == [
        ("accounts.main.api_key", False),
        ("http.token", False),
        ("accounts.main.webhook.secret", False),
        ("webhook.tls.key", True),
    ]
    assert load([GOOD / "everything.yaml"]).certificates == 2 * (GOOD / "company-ca.pem",)
    assert load([GOOD / "minimal.yaml"]).certificates == ()
    assert [one.key for one in load([GOOD / "minimal.yaml"]).secrets] == ["accounts.main.api_key"]


def test_settings_are_merged_key_by_key_from_defaults_over_account_to_user() -> None:
    user = users(load([GOOD / "everything.yaml"]))
    common = Poll(
        every=timedelta(minutes=1),
        cron=None,
        timezone=ZoneInfo("Europe/Berlin"),
        start=datetime(2024, 5, 21, tzinfo=UTC),
        overlap=timedelta(minutes=30),
        max_window=2 * DAY,
        sweep=Sweep(every=2 * HOUR, back=36 * HOUR),
        deep_sweep=Sweep(every=2 * DAY, back=14 * DAY),
    )
    assert user["front-desk"].poll == common
    billing = user["billing"].poll
    assert (billing.every, billing.cron) == (None, "0 8,12,16 * * mon-fri")
    assert billing.timezone == ZoneInfo("America/Los_Angeles")
    assert billing.sweep == Sweep(every=2 * HOUR, back=12 * HOUR)
    assert (billing.overlap, billing.deep_sweep) == (common.overlap, common.deep_sweep)
    assert [user[name].image_format for name in ("front-desk", "billing")] == ["tiff", "pdf"]


def test_every_and_cron_replace_each_other_across_levels() -> None:
    user = users(load([GOOD / "everything.yaml"]))  # cron above, every here, cron, every
    assert (user["front-desk"].poll.every, user["front-desk"].poll.cron) == (HOUR / 60, None)
    assert user["billing"].poll.every is None
    assert (user["every-again"].poll.every, user["every-again"].poll.cron) == (HOUR / 12, None)


def test_expectation_is_merged_and_null_takes_it_away() -> None:
    user = users(load([GOOD / "everything.yaml"]))
    days = frozenset({0, 1, 2, 3, 4, 6})
    expect = Expect(2 * DAY, During(days, 8 * 60, 18 * 60), UTC_ZONE)
    assert user["front-desk"].expect == expect
    assert user["billing"].expect == Expect(2 * DAY, expect.during, ZoneInfo("America/New_York"))
    assert user["quiet"].expect is None


def test_sending_deleting_and_the_canary_are_merged_key_by_key_and_null_turns_them_off() -> None:
    user = users(load([GOOD / "everything.yaml"]))
    front_desk, billing, quiet = (user[name] for name in ("front-desk", "billing", "quiet"))
    path, start = "out/{completed:%Y}/{fax_id}", datetime(2024, 5, 21, tzinfo=UTC)
    expect = Expect(DAY / 2)
    assert front_desk.sent == Sent("metadata", HOUR / 12, start, path, expect)
    in_new_york = replace(expect, timezone=ZoneInfo("America/New_York"))
    assert billing.sent == Sent("image", HOUR / 12, start, path, in_new_york)
    assert quiet.sent == replace(front_desk.sent, expect=None)
    assert front_desk.delete == Delete(30 * DAY, 100, "delete")
    assert billing.delete == Delete(None, 10, "delete")
    assert front_desk.canary == Canary(DAY / 2, HOUR * 3 / 4)
    assert billing.canary == Canary(DAY / 2, HOUR / 4)
    assert quiet.canary is None
    assert [one.number for one in (front_desk, billing, quiet)] == [
        "+4930555014",
        "13235550142",
        None,
    ]
    assert [one.mark_downloaded for one in (front_desk, billing)] == [False, False]


def test_omitted_keys_of_a_canary_and_a_web_hook_have_defaults(tmp_path: Path) -> None:
    text = (GOOD / "minimal.yaml").read_text()
    user = 'front-desk: {user_id: "0f8a", number: "13235550142", canary: {every: 1s}}'
    text = text.replace('front-desk: {user_id: "0f8a"}', user)
    text = text.replace("    users:", "    webhook: {path: /a/b, secret: {env: H}}\n    users:")
    file = tmp_path / "poller.yaml"
    file.write_text(text + "webhook: {listen: 'localhost:0', tls: null}\n")
    config = load([file])
    assert users(config)["front-desk"].canary == Canary(timedelta(seconds=1), HOUR / 2)
    assert config.webhook == WebhookConfig("localhost", 0, None)


def test_two_listeners_may_both_take_a_free_port_and_any_when_the_page_is_off(
    tmp_path: Path,
) -> None:
    text = (GOOD / "minimal.yaml").read_text()
    text = text.replace("    users:", "    webhook: {path: /a, secret: {env: H}}\n    users:")
    file = tmp_path / "poller.yaml"
    for page, port in (("'127.0.0.1:0'", 0), ("null", 9410)):
        file.write_text(
            f"{text}http: {{listen: {page}}}\nwebhook: {{listen: '127.0.0.1:{port}'}}\n"
        )
        assert load([file]).webhook == WebhookConfig("127.0.0.1", port)


@pytest.mark.parametrize(
    ("written", "during"),
    [
        pytest.param("mon-fri 08:00-18:00", During(frozenset(range(5)), 480, 1080), id="a week"),
        pytest.param("sat,sun 00:00-24:00", During(frozenset({5, 6}), 0, 1440), id="whole days"),
        pytest.param(
            "Fri-Mon 22:00-06:00", During(frozenset({4, 5, 6, 0}), 1320, 360), id="nights"
        ),
    ],
)
def test_office_hours_are_days_and_a_stretch_of_the_day(
    tmp_path: Path, written: str, during: During
) -> None:
    config = from_text(tmp_path, f"expect: {{within: 1d, during: '{written}'}}\n")
    assert users(config)["front-desk"].expect == Expect(DAY, during)


@pytest.mark.parametrize(
    ("written", "start"),
    [
        pytest.param("90d", 90 * DAY, id="duration"),
        pytest.param("172800s", 2 * DAY, id="duration of six digits"),
        pytest.param("20240521s", timedelta(seconds=20_240_521), id="duration like a date"),
        pytest.param("000000000007d", 7 * DAY, id="duration with leading zeros"),
        pytest.param("20240521T000000Z", datetime(2024, 5, 21, tzinfo=UTC), id="basic form"),
        pytest.param("2024-05-21 00:00Z", datetime(2024, 5, 21, tzinfo=UTC), id="with a space"),
        pytest.param("2024-05-21T04:27:56Z", datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC), id="Z"),
        pytest.param(
            "2024-05-21T00:00:00-0700", datetime(2024, 5, 21, 7, tzinfo=UTC), id="offset of four"
        ),
    ],
)
def test_start_is_a_look_back_or_an_instant(
    tmp_path: Path, written: str, start: timedelta | datetime
) -> None:
    config = from_text(tmp_path, f"poll: {{start: {written}}}\n")
    assert users(config)["front-desk"].poll.start == start


@pytest.mark.parametrize(
    ("written", "length"),
    [
        pytest.param("500ms", timedelta(milliseconds=500), id="ms"),
        pytest.param("30s", timedelta(seconds=30), id="s"),
        pytest.param("15m", timedelta(minutes=15), id="m"),
        pytest.param("24h", timedelta(days=1), id="h"),
        pytest.param("7d", timedelta(days=7), id="d"),
    ],
)
def test_duration_is_a_whole_number_and_a_unit(
    tmp_path: Path, written: str, length: timedelta
) -> None:
    assert from_text(tmp_path, f"drain: {written}\n").drain == length


def example() -> Node:
    root = parse(EXAMPLE.read_bytes(), Source("example", Path("/")), Problems())
    assert root is not None
    return root


def leaves(node: Node) -> Iterator[Node]:
    if not isinstance(node.value, dict):
        yield node
        return
    for child in node.value.values():
        yield from leaves(child)


def like(pattern: str) -> list[str]:
    """Return the keys of the example whose value is written like this."""
    return [leaf.key for leaf in leaves(example()) if re.fullmatch(pattern, str(leaf.value))]


DURATION = "[0-9]+(ms|s|m|h|d)"
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@st.composite
def durations(draw: st.DrawFn) -> str:
    """Any duration of at least a minute, which is enough for every key, and below ten years."""
    unit = draw(st.sampled_from(sorted(SECONDS)))
    most = int(3650 * 86400 / SECONDS[unit]) - 1
    count = draw(st.integers(math.ceil(60 / SECONDS[unit]), most))
    return f"{count:0{draw(st.integers(1, 12))}}{unit}"


UNSET = ["expect.within", "sent.expect.within", "delete.after"]  # by default


@pytest.mark.parametrize("key", [*like(DURATION), *UNSET])
@given(written=durations())
@settings(max_examples=often(20))
def test_every_key_that_takes_a_duration_takes_every_legal_one(key: str, written: str) -> None:
    around = {"poll.overlap": "{max_window: 3650d}", "poll.max_window": "{overlap: 1s}"}
    text = (GOOD / "minimal.yaml").read_text() + nested(key, written)
    source, problems = Source("poller.yaml", Path("/etc/poller")), Problems()
    root = parse(text.encode(), source, problems)
    assert root is not None
    if key in around:
        other = parse(f"poll: {around[key]}".encode(), source, problems)
        assert other is not None
        root = merged(root, other, problems)
    outside = Outside(lambda _: None, lambda _: True, lambda path: path, datetime.now(UTC))
    Builder(problems, outside).config(root, ())
    assert not problems.found


def nested(key: str, written: str) -> str:
    """Return `a.b: value` as one line of YAML."""
    first, *rest = key.split(".")
    return f"{first}: " + "".join(f"{{{part}: " for part in rest) + written + "}" * len(rest) + "\n"


@pytest.mark.parametrize(
    ("written", "size"),
    [
        pytest.param("0B", 0, id="B"),
        pytest.param("3KiB", 3072, id="KiB"),
        pytest.param("512MiB", 512 << 20, id="MiB"),
        pytest.param("1GiB", 1 << 30, id="GiB"),
        pytest.param("2TiB", 2 << 40, id="TiB"),
    ],
)
def test_size_is_a_whole_number_and_a_unit(tmp_path: Path, written: str, size: int) -> None:
    assert from_text(tmp_path, f"evidence: {{max: {written}}}\n").evidence_max == size


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 29, "2.5 GiB")]
)
def test_sizes_are_spelled_for_people(count: int, text: str) -> None:
    assert size_text(count) == text


def test_maps_are_merged_over_the_files_of_a_directory() -> None:
    config = load([GOOD / "split"])
    assert [account.name for account in config.accounts] == ["main", "other"]
    assert list(users(config)) == ["front-desk", "billing"]
    assert [user.name for user in config.users] == ["front-desk", "billing", "lab"]
    poll = users(config, 1)["lab"].poll
    assert (poll.every, poll.sweep.every) == (timedelta(minutes=1), 2 * HOUR)
    names = ["10-accounts", "20-more-users", "30-empty", "31-null"]
    assert config.files == tuple(GOOD / "split" / f"{name}.yaml" for name in names)


def test_relative_path_starts_from_the_file_in_which_it_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(GOOD / "split")
    config = load([Path("10-accounts.yaml"), Path("../split/20-more-users.yaml")])
    assert config.accounts[0].api_key.name == str(GOOD / "split" / "efax.key")
    assert config.storage.directory == GOOD / "split" / "faxes"


STATE = Path("/var/lib/poller/state")


@pytest.mark.parametrize(
    ("written", "directory", "ledger"),
    [
        pytest.param("", STATE, STATE / "poller.db", id="neither"),
        pytest.param("{}", STATE, STATE / "poller.db", id="an empty map"),
        pytest.param("{url: null}", STATE, STATE / "poller.db", id="null"),
        pytest.param("{directory: here}", "here", "here/poller.db", id="a directory"),
        pytest.param("{directory: /a/b/../c, url: null}", "/a/c", "/a/c/poller.db", id="and null"),
        pytest.param("{url: 'sqlite:///db/l.db'}", "db", "db/l.db", id="a url"),
        pytest.param("{url: 'sqlite:////db/l.db'}", "/db", "/db/l.db", id="an absolute url"),
        pytest.param(
            "{directory: here, url: 'sqlite:////disk/l.db'}", "here", "/disk/l.db", id="both"
        ),
    ],
)
def test_state_is_a_directory_and_the_ledger_in_it_or_elsewhere(
    tmp_path: Path, written: str, directory: Path, ledger: Path
) -> None:
    config = from_text(tmp_path, f"state: {written}\n" if written else "")
    assert config.state_directory == tmp_path / directory
    assert config.state_url == f"sqlite:///{tmp_path / ledger}"


def test_directory_and_url_of_two_files_each_start_from_their_own(tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "a.yaml", tmp_path / "two" / "b.yaml"
    one.parent.mkdir()
    two.parent.mkdir()
    one.write_text((GOOD / "minimal.yaml").read_text() + "state: {directory: state}\n")
    two.write_text("state: {url: 'sqlite:///ledger.db'}\n")
    for paths in ([one, two], [two, one]):
        config = load(paths)
        assert config.state_directory == tmp_path / "one" / "state"
        assert config.state_url == f"sqlite:///{tmp_path}/two/ledger.db"


def test_lowest_values_are_allowed() -> None:
    config = load([GOOD / "lowest.yaml"])
    (user,) = config.users
    assert config.accounts[0].limits == Limits(0.001, 1, 1)
    assert (user.poll.every, user.poll.overlap) == (timedelta(seconds=1), timedelta(seconds=1))
    assert user.poll.sweep == Sweep(timedelta(seconds=1), timedelta(minutes=1))
    assert config.retry == RetryConfig(
        1, timedelta(milliseconds=1), timedelta(seconds=1), timedelta(seconds=1)
    )


def test_byte_order_mark_and_windows_line_ends_are_no_problem() -> None:
    assert load([GOOD / "byte-order-mark.yaml"]) == load([GOOD / "minimal.yaml"])


def test_aliases_repeat_a_value() -> None:
    config = load([GOOD / "aliases.yaml"])
    assert config.accounts[0].api_key == config.accounts[1].api_key
    assert [user.poll.every for user in config.accounts[0].users] == [HOUR / 6, HOUR / 6]
    (user,) = config.accounts[1].users
    assert (user.user_id, user.poll.every, user.poll.start) == ("1", HOUR / 12, 3 * DAY)


def test_text_that_yaml_1_1_took_for_something_else_is_text() -> None:
    config = load([GOOD / "core-schema.yaml"])
    account = config.accounts[0]
    assert (account.name, account.app_id, account.api_key.name) == ("no", "yes", "on")
    ids = {user.name: user.user_id for user in account.users}
    assert ids == {"y": "12:30:45", "off": "2024-05-21", "1234": "1_000"}


def test_http_is_allowed_to_loopback_and_the_status_server_can_be_off() -> None:
    config = load([GOOD / "loopback.yaml"])
    assert [account.base_url for account in config.accounts] == [
        "http://127.8.9.10:8080",
        "http://[::1]:8080",
        "http://LocalHost:8080",
    ]
    assert config.http.host is None


@pytest.mark.parametrize(
    ("listen", "host"),
    [
        pytest.param("localhost:80", "localhost", id="name"),
        pytest.param("127.1.2.3:80", "127.1.2.3", id="IPv4"),
        pytest.param("'[::1]:80'", "::1", id="IPv6"),
    ],
)
def test_loopback_needs_no_token(tmp_path: Path, listen: str, host: str) -> None:
    config = from_text(tmp_path, f"http: {{listen: {listen}}}\n")
    assert config.http == HttpConfig(host, 80)


def test_example_has_every_key_with_its_default() -> None:
    minimal, example = load([GOOD / "minimal.yaml"]), load([EXAMPLE])
    (account,) = example.accounts
    front_desk, billing = account.users
    assert front_desk.poll == Poll()
    assert replace(front_desk, number=None) == User(
        "main", "front-desk", "12345", front_desk.user_id
    )
    assert billing.poll.cron is not None
    assert account == Account("main", "12345", account.api_key, account.users)
    assert (example.storage, example.state, example.retry, example.evidence_max) == (
        minimal.storage,
        minimal.state,
        minimal.retry,
        minimal.evidence_max,
    )
    assert (example.heartbeat, example.log, example.http, example.webhook, example.drain) == (
        minimal.heartbeat,
        minimal.log,
        minimal.http,
        minimal.webhook,
        minimal.drain,
    )


def keys_of(known: Tree, above: str = "") -> Iterator[tuple[str, Leaf]]:
    """Return the keys that are read, by their paths."""
    for name, entry in known.items():
        if isinstance(entry, Leaf):
            yield above + name, entry
        below = entry.below if isinstance(entry, Leaf) else entry
        yield from keys_of(below or {}, f"{above}{name}.")


def test_the_reference_is_what_the_table_of_keys_prints() -> None:
    """`python -m poller.config.reference >config/REFERENCE.md` makes it."""
    assert (ROOT / "config/REFERENCE.md").read_text() == reference.page()


def meanings() -> dict[str, str]:
    """Return the rows of the reference: a key by its place among those of its account or user."""
    rows = re.findall(r"^\| `(\S+)` \| .* \| (.*) \|$", reference.page(), re.MULTILINE)
    return {re.sub(r"^accounts\.NAME\.(users\.NAME\.)?(?=.)", "", key): told for key, told in rows}


def test_every_key_that_is_read_is_in_the_example_and_the_reference() -> None:
    told, example = meanings(), EXAMPLE.read_text()
    for model in (Config, Account, User):
        for path, _ in keys_of(tree(model)):
            *_, last = path.split(".")
            assert {path, f"{path}.NAME"} & told.keys(), path
            assert f"{last}:" in example, path


def test_every_key_says_in_sentences_what_it_is() -> None:
    for key, told in meanings().items():
        assert re.fullmatch(r"(\W?[A-Z]|`|poller|eFax|null).*\.", told), key
        assert len(told) < 300, key


LIMITS = re.compile("from [0-9.]+ to [0-9]+|at least [0-9]+[a-z]+")


@pytest.mark.parametrize("wrong", [-1, "0ms"])
def test_the_reference_has_the_limits_that_a_value_is_held_to(wrong: int | str) -> None:
    told, found = meanings(), 0
    for model in (Config, Account, User):
        for path, leaf in keys_of(tree(model)):
            is_map = leaf.below is not None or path in ("accounts", "users")
            if not is_map and (limits := LIMITS.search(refusal(leaf, wrong))):
                assert limits[0] in told[path], path
                found += 1
    assert found > 4


def refusal(leaf: Leaf, value: int | str) -> str:
    """Say why a key does not take this value; nothing where it does."""
    try:
        leaf.kind(Node(Source("", Path()), value=value))
    except WrongValueError as error:
        return str(error)
    return ""


def test_example_names_every_key_of_the_contract() -> None:
    sweeps = {
        f"poll.{sweep}.{key}" for sweep in ("sweep", "deep_sweep") for key in ("every", "back")
    }
    account = ["app_id", "base_url", "api_key.credential", "proxy", "webhook", "tls.ca_file"]
    limits = ["requests_per_second", "burst", "in_flight"]
    billing = ("user_id", "poll.cron", "poll.timezone")
    assert {leaf.key for leaf in leaves(example())} == {
        *(f"accounts.main.{key}" for key in account),
        *(f"accounts.main.limits.{key}" for key in limits),
        *(f"accounts.main.users.billing.{key}" for key in billing),
        *(f"accounts.main.users.front-desk.{key}" for key in ["user_id", "number"]),
        *(f"poll.{key}" for key in ["every", "timezone", "start", "overlap", "max_window"]),
        *sweeps,
        *(f"image.{key}" for key in ["format", "mark_downloaded"]),
        *(f"sent.{key}" for key in ["archive", "every", "start", "path", "expect"]),
        *(f"delete.{key}" for key in ["after", "max_per_day", "taken"]),
        "canary",
        "node",
        *(f"storage.{key}" for key in ["directory", "path", "min_free", "consumers"]),
        *(f"state.{key}" for key in ["directory", "url", "password"]),
        *(f"retry.{key}" for key in ["attempts", "max_delay", "alarm_after", "give_up_after"]),
        "evidence.max",
        "expect",
        "heartbeat.url",
        "heartbeat.every",
        "heartbeat.proxy",
        "log.level",
        "log.format",
        "log.key",
        "http.listen",
        "http.token",
        "webhook",
        "drain",
    }


def test_hundreds_of_users_with_settings_of_their_own_load_in_a_moment(tmp_path: Path) -> None:
    lines = (f"      u{i}: {{user_id: '{i:032x}', poll: {{every: 45s}}}}" for i in range(500))
    file = tmp_path / "poller.yaml"
    file.write_text(
        "accounts:\n  main:\n    app_id: '1'\n    api_key: {env: K}\n    users:\n"
        + "\n".join(lines)
    )
    begun = time.process_time()
    config = load([file])
    assert len(config.accounts[0].users) == 500
    # 0.2 s on a quiet machine (10,000 users: 3 s); the margin is for coverage and busy ones.
    assert time.process_time() - begun < 40


def test_a_stream_of_sent_faxes_has_its_own_schedule_and_expectation() -> None:
    config = load([GOOD / "everything.yaml"])
    billing = users(config)["billing"]
    assert billing.of(Direction.RECEIVED) is billing
    sent = billing.of(Direction.SENT)
    assert (sent.poll.every, sent.poll.cron) == (billing.sent.every, None)
    assert (sent.poll.start, sent.expect) == (billing.sent.start, billing.sent.expect)
    assert (sent.poll.overlap, sent.names) == (billing.poll.overlap, billing.names)
    quiet = replace(billing, sent=Sent())
    account = replace(config.accounts[0], users=(quiet, billing))
    assert replace(config, accounts=(account,)).streams == [
        (quiet, Direction.RECEIVED),
        (billing, Direction.RECEIVED),
        (billing, Direction.SENT),
    ]


def test_bucket_needs_no_directory_and_names_its_secrets(tmp_path: Path) -> None:
    file = tmp_path / "poller.yaml"
    file.write_text(
        "accounts: {main: {app_id: '1', api_key: {env: K}, users: {desk: {user_id: a}}}}\n"
        "storage:\n"
        "  url: s3://faxes/poller/in/\n"
        "  endpoint: http://127.0.0.1:9000/\n"
        "  region: eu-central-1\n"
        "  access_key_id: {env: ID}\n"
        "  secret_access_key: {file: key}\n"
    )
    config = load([file])
    storage = config.storage
    assert (storage.url, storage.endpoint) == ("s3://faxes/poller/in", "http://127.0.0.1:9000")
    assert storage.region == "eu-central-1"
    assert [ref.name for ref in config.secrets] == ["K", "ID", str(tmp_path / "key")]


def test_bucket_without_its_package_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "poller.yaml"
    file.write_text(
        "accounts: {main: {app_id: '1', api_key: {env: K}, users: {desk: {user_id: a}}}}\n"
        "storage: {url: s3://faxes}\n"
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"2: storage.url: .*pip install 'poller\[cluster\]'"):
        load([file])
