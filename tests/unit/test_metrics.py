import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from poller import events
from poller.events import OfUser
from poller.metrics import _GAUGES, _USER_GAUGES, MOST_USERS, Metrics, _count_sent
from poller.stream import Direction

AT = datetime(2024, 5, 21, 4, 27, 56, tzinfo=UTC)


async def samples(metrics: Metrics, *, full: bool = False) -> dict[tuple[str, str], float]:
    """Read what Prometheus would read: (name, labels as text) to value."""
    text = (await metrics.render(full=full)).decode()
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_what_happened_to_a_user_is_counted() -> None:
    metrics = Metrics("1.2.3")
    metrics.poll("main", "desk", "ok")
    metrics.poll("main", "desk", "ok")
    metrics.poll("main", "desk", "failed")
    metrics.fax(OfUser("main", "desk"), "discovered", 7)
    metrics.fax(OfUser("main", "desk"), "stored")
    seen = await samples(metrics)
    assert seen["poller_polls_total", "account=main,outcome=ok,user=desk"] == 2
    assert seen["poller_polls_total", "account=main,outcome=failed,user=desk"] == 1
    assert seen["poller_polls_total", "account=main,outcome=skipped,user=desk"] == 0
    assert (
        seen["poller_faxes_total", "account=main,direction=received,outcome=discovered,user=desk"]
        == 7
    )
    assert (
        seen["poller_faxes_total", "account=main,direction=received,outcome=stored,user=desk"] == 1
    )
    assert (
        seen["poller_faxes_total", "account=main,direction=received,outcome=quarantined,user=desk"]
        == 0
    )
    assert seen["poller_users", ""] == 1


async def test_how_a_user_stands_is_shown() -> None:
    metrics = Metrics("1.2.3")
    metrics.set_user("main", "desk", pending=3, quarantined=1, gap_s=3600.0)
    metrics.set_user("main", "desk", watermark=AT, settled=AT + timedelta(hours=1), last_success=AT)
    metrics.set_user("main", "desk", overdue=True, silent=True)
    metrics.set_user("main", "desk", watermark=None)
    seen = await samples(metrics)
    labels = "account=main,user=desk"
    of_stream = "account=main,direction=received,user=desk"
    assert seen["poller_fax_pending", of_stream] == 3
    assert seen["poller_fax_quarantined", labels] == 1
    assert seen["poller_watermark_timestamp_seconds", of_stream] == AT.timestamp()
    assert seen["poller_settled_timestamp_seconds", labels] == AT.timestamp() + 3600
    assert seen["poller_last_success_timestamp_seconds", labels] == AT.timestamp()
    assert seen["poller_coverage_gap_seconds", labels] == 3600
    assert seen["poller_user_overdue", labels] == 1
    assert seen["poller_user_silent", labels] == 1


async def test_a_time_that_is_not_known_yet_is_not_shown_as_1970() -> None:
    metrics = Metrics("1.2.3")
    metrics.poll("main", "desk", "failed")
    names = {name for name, _ in await samples(metrics)}
    assert "poller_fax_pending" in names
    assert "poller_last_success_timestamp_seconds" not in names
    assert "poller_watermark_timestamp_seconds" not in names


async def test_a_user_that_is_removed_is_no_longer_shown() -> None:
    metrics = Metrics("1.2.3")
    metrics.poll("main", "desk", "ok")
    metrics.poll("main", "lab", "ok")
    metrics.keep(frozenset({("main", "lab", Direction.RECEIVED)}))
    metrics.poll("main", "desk", "failed")  # it was running
    assert [labels for _, labels in await samples(metrics) if "user=lab" in labels]
    assert not [labels for _, labels in await samples(metrics) if "user=desk" in labels]


async def test_requests_and_accounts_are_counted_and_timed() -> None:
    metrics = Metrics("1.2.3")
    metrics.request("main", "list", 200, 0.2)
    metrics.request("main", "list", 200, 0.3)
    metrics.request("main", "image", None, 70.0)
    metrics.add("rate_limit_wait_seconds", "main", count=1.5)
    metrics.count(events.TokenRefreshed("main", "start"))
    metrics.set("account_suspended", True, "main")
    metrics.count(events.TokenWar("main", 3))
    metrics.set("schedule_stretch_ratio", 2.5, "main")
    seen = await samples(metrics)
    assert seen["poller_requests_total", "account=main,call=list,status=200"] == 2
    assert seen["poller_requests_total", "account=main,call=image,status=error"] == 1
    assert seen["poller_request_duration_seconds_count", "call=list"] == 2
    assert seen["poller_request_duration_seconds_bucket", "call=image,le=60.0"] == 0
    assert seen["poller_request_duration_seconds_bucket", "call=image,le=120.0"] == 1
    assert seen["poller_rate_limit_wait_seconds_total", "account=main"] == 1.5
    assert seen["poller_sign_ins_total", "account=main,reason=start"] == 1
    assert seen["poller_account_suspended", "account=main"] == 1
    assert seen["poller_token_war", "account=main"] == 1
    assert seen["poller_schedule_stretch_ratio", "account=main"] == 2.5
    metrics.set("account_suspended", False, "main")
    assert (await samples(metrics))["poller_account_suspended", "account=main"] == 0
    metrics.forget_account("main")
    metrics.forget_account("main")
    left = {name for name, labels in await samples(metrics) if labels == "account=main"}
    assert left == {"poller_rate_limit_wait_seconds_total"}, "counters alone"


async def test_leases_are_shown_from_the_moment_they_change_hands() -> None:
    metrics, main = Metrics("1.2.3"), "account=main"
    metrics.count(events.LeaseTaken("main", 3, is_takeover=False))
    metrics.set("account_suspended", True, "main")
    seen = await samples(metrics)
    assert (seen["poller_lease_held", main], seen["poller_lease_term", main]) == (1, 3)
    metrics.count(events.Fenced("main", 2))
    metrics.count(events.LeaseWasLost("main"))
    metrics.count(events.LedgerRolledBack(5))
    seen = await samples(metrics)
    assert seen["poller_lease_held", main] == 0
    assert seen["poller_lease_lost_total", main] == 1
    assert seen["poller_fenced_writes_total", main] == 2
    assert seen["poller_ledger_rollbacks_total", ""] == 1
    assert ("poller_account_suspended", main) not in seen, "another node knows that now"
    metrics.count(events.LeaseReleased("main"))
    assert (await samples(metrics))["poller_lease_lost_total", main] == 1


async def test_tickets_and_transactions_are_counted_from_the_start() -> None:
    metrics = Metrics("1.2.3")
    assert (await samples(metrics))["poller_tickets_revoked_total", "outcome=placed"] == 0
    metrics.add("tickets_revoked", "placed")
    metrics.committed(0.004)
    seen = await samples(metrics)
    assert seen["poller_tickets_revoked_total", "outcome=placed"] == 1
    assert seen["poller_ledger_commit_seconds_bucket", "le=0.0025"] == 0
    assert seen["poller_ledger_commit_seconds_bucket", "le=0.005"] == 1


async def test_the_service_itself_is_shown() -> None:
    metrics = Metrics("1.2.3")
    metrics.set("storage_free_bytes", 1 << 30)
    metrics.set("storage_usable", True)
    metrics.set("storage_min_free_bytes", 1 << 20)
    metrics.set("ready", True)
    metrics.count(events.FaxDiscovered("main", "desk", "f1", AT, 1, delay_s=40.0))
    stored = events.FaxStored("main", "desk", "f1", "f1.pdf", 1, 1, is_again=False, waited_s=-5.0)
    metrics.count(stored)
    seen = await samples(metrics)
    assert seen["poller_storage_free_bytes", ""] == 1 << 30
    assert seen["poller_storage_usable", ""] == 1
    assert seen["poller_storage_min_free_bytes", ""] == 1 << 20
    assert seen["poller_ready", ""] == 1
    assert seen["poller_visibility_delay_seconds_bucket", "le=30.0"] == 0
    assert seen["poller_visibility_delay_seconds_bucket", "le=60.0"] == 1
    assert seen["poller_ingest_latency_seconds_sum", ""] == 0
    assert next(labels for name, labels in seen if name == "poller_build_info").endswith("=1.2.3")


async def test_every_name_begins_with_poller_and_no_series_says_when_it_was_made() -> None:
    metrics = Metrics("1.2.3")
    metrics.poll("main", "desk", "ok")
    metrics.request("main", "list", 200, 0.2)
    names = {name for name, _ in await samples(metrics)}
    assert all(re.fullmatch(r"poller_[a-z_]+", name) for name in names)
    assert not [name for name in names if name.endswith("_created")]


async def test_above_two_thousand_users_they_are_added_up_unless_asked_for() -> None:
    metrics = Metrics("1.2.3")
    later = AT.replace(hour=5)
    for number in range(MOST_USERS + 1):
        account = "lab" if number % 2 else "main"
        metrics.poll(account, f"u{number}", "ok")
        metrics.fax(OfUser(account, f"u{number}"), "stored", 2)
        metrics.set_user(account, f"u{number}", pending=1)
        metrics.set_user(account, f"u{number}", overdue=number < 10, silent=number < 4)
    metrics.set_user("main", "u0", watermark=later)
    metrics.set_user("main", "u2", watermark=AT)
    added = await samples(metrics)
    assert added["poller_polls_total", "account=lab,outcome=ok,user="] == 1000
    assert (
        added["poller_faxes_total", "account=main,direction=received,outcome=stored,user="] == 2002
    )
    assert added["poller_fax_pending", "account=main,direction=received,user="] == 1001
    assert added["poller_user_overdue", "account=main,user="] == 5
    assert added["poller_user_silent", "account=main,user="] == 2
    of_account = "account=main,direction=received,user="
    assert added["poller_watermark_timestamp_seconds", of_account] == AT.timestamp()
    assert added["poller_users", ""] == MOST_USERS + 1
    full = (await metrics.render(full=True)).decode().splitlines()
    assert 'poller_polls_total{account="lab",outcome="ok",user="u1"} 1.0' in full
    assert not [
        line for line in full if 'poller_polls_total{account="lab",outcome="ok",user=""' in line
    ]


async def test_rendered_metrics_are_those_of_the_moment_of_the_request() -> None:
    metrics = Metrics("1.2.3")
    metrics.poll("main", "desk", "ok")
    rendering = metrics.render()
    before = await rendering
    metrics.poll("main", "desk", "ok")
    assert b'outcome="ok",user="desk"} 1.0' in before


async def test_sent_and_received_faxes_have_separate_figures() -> None:
    metrics = Metrics("1.2.3")
    assert not any("sent_polls" in name for name, _ in await samples(metrics))
    sent = OfUser("main", "desk", direction=Direction.SENT)
    metrics.poll("main", "desk", "ok")
    metrics.poll("main", "desk", "failed", Direction.SENT)
    metrics.fax(OfUser("main", "desk"), "stored", 3)
    metrics.fax(sent, "stored")
    metrics.set_user("main", "desk", pending=5, watermark=AT, last_success=AT)
    metrics.set_user("main", "desk", Direction.SENT, pending=2, watermark=AT, gap_s=60.0)
    seen = await samples(metrics)
    whose, stored = "account=main,user=desk", "account=main,direction={},outcome=stored,user=desk"
    assert seen["poller_polls_total", "account=main,outcome=failed,user=desk"] == 0
    assert seen["poller_sent_polls_total", "account=main,outcome=failed,user=desk"] == 1
    assert seen["poller_faxes_total", stored.format("received")] == 3
    assert seen["poller_faxes_total", stored.format("sent")] == 1
    for direction, pending in (("received", 5), ("sent", 2)):
        of_stream = f"account=main,direction={direction},user=desk"
        assert seen["poller_fax_pending", of_stream] == pending
        assert seen["poller_watermark_timestamp_seconds", of_stream] == AT.timestamp()
    assert seen["poller_coverage_gap_seconds", whose] == 0
    assert seen["poller_sent_coverage_gap_seconds", whose] == 60
    assert seen["poller_last_success_timestamp_seconds", whose] == AT.timestamp()
    assert ("poller_sent_last_success_timestamp_seconds", whose) not in seen
    assert seen["poller_users", ""] == 1
    metrics.keep(frozenset({("main", "desk", Direction.RECEIVED)}))
    assert not any("direction=sent" in labels for _, labels in await samples(metrics))


# -- the manual's table --------------------------------------------------------------------------


PAGE = Path(__file__).parents[2] / "config/MONITORING.md"


def in_table() -> dict[str, dict[str, set[str]]]:
    """Return the metrics of the table with their labels, and the values that it names."""
    rows = re.findall(r"^\| (`.*?) \|(.*?) (?<!\\)\| .+ \|$", _section("Metrics"), re.MULTILINE)
    found: dict[str, dict[str, set[str]]] = {}
    for names, labels in rows:
        of_row = {
            label: set(named.replace("\\", "").split("|")) if named else set[str]()
            for label, _, named in (one.partition("=") for one in labels.strip().split(", ") if one)
        }
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), of_row)
    return found


def _section(heading: str) -> str:
    return PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


async def rendered() -> dict[str, dict[str, set[str]]]:
    """Return every metric that there is, with its labels and their values."""
    metrics = Metrics("1.2.3")
    for gauge, (_, of_account) in _GAUGES.items():
        metrics.set(gauge, 1.0, *(["main"] if of_account else []))
    metrics.set_user("main", "desk", Direction.RECEIVED, **dict.fromkeys(_USER_GAUGES, 1.0))
    metrics.request("main", "list", 200, 0.5)
    metrics.add("rate_limit_wait_seconds", "main")
    metrics.add("sign_ins", "main", "start")
    metrics.add("lease_lost", "main")
    metrics.add("fenced_writes", "main")
    metrics.show_webhook("main")
    _count_sent(metrics, OfUser("main", "desk"), "accepted")
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families((await metrics.render()).decode()):
        name = family.name.removeprefix("poller_")
        labels = found.setdefault(name + "_total" * (family.type == "counter"), {})
        for sample in family.samples:
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


async def test_the_manual_has_every_metric_with_its_labels_and_no_other() -> None:
    told = in_table()
    found = {name: labels for name, labels in (await rendered()).items() if "process" not in name}
    assert set(told) == set(found)
    for name, labels in told.items():
        seen = found[name]
        assert labels.keys() == seen.keys() - {"le", "version", "python"}, name
        for label in labels.keys() & {"outcome"}:
            assert seen[label] == labels[label], name
