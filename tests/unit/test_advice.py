"""What `check` says about a valid configuration: its consequences, and possible mistakes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poller import advice
from poller.config.model import (
    DAY,
    HOUR,
    MINUTE,
    Account,
    AccountHook,
    Canary,
    Config,
    Delete,
    Heartbeat,
    HookTls,
    Poll,
    SecretRef,
    Sent,
    StorageConfig,
    User,
    WebhookConfig,
)

NOW = datetime(2026, 3, 2, 12, tzinfo=UTC)
KEY = SecretRef("env", "KEY")
PROXY = "http://proxy.example:3128"
NUMBER = "13235550142"
MOVE = StorageConfig(consumers="move")


def with_users(*users: dict[str, Any], **account: Any) -> Config:
    made = tuple(User("main", f"u{i}", "1", str(i), **user) for i, user in enumerate(users))
    return Config((Account("main", "1", KEY, made, **account),))


def consequences(config: Config) -> list[str]:
    return list(advice.consequences(config))


def warnings(config: Config) -> list[str]:
    return list(advice.warnings(config, NOW))


def test_features_that_are_off_are_not_mentioned() -> None:
    config = with_users({}, {"number": NUMBER}, {"sent": Sent(every=MINUTE)})
    assert consequences(config) == []
    assert warnings(config) == []
    assert warnings(replace(config, storage=MOVE)) == []


def test_features_that_cost_money_delete_or_listen_are_mentioned_once() -> None:
    canary = Canary(8 * HOUR, 30 * MINUTE)
    config = with_users(
        {"sent": Sent("image"), "delete": Delete(30 * DAY), "canary": canary},
        {"sent": Sent("metadata"), "delete": Delete(7 * DAY), "canary": replace(canary, every=DAY)},
        {},
        webhook=AccountHook("/efax", KEY),
    )
    second = Account("other", "2", KEY, (), webhook=AccountHook("/other", KEY))
    third = Account("third", "3", KEY, ())
    config = replace(config, accounts=(*config.accounts, second, third))
    config = replace(config, webhook=WebhookConfig("127.0.0.1", 9411))
    assert consequences(config) == [
        "poller archives sent faxes for 2 of 3 users, for 1 of them with their pages",
        "poller deletes faxes at eFax for 2 of 3 users, 7d or more after storing them; nothing brings "
        "a deleted fax back",
        "poller sends canaries for 2 of 3 users, about 4 faxes a day, for which eFax may charge",
        "poller listens for eFax's notices on 127.0.0.1:9411, without TLS, from a proxy on this "
        "server, for main, other",
    ]
    assert warnings(config) == []


def test_listener_with_tls_is_mentioned_with_its_address() -> None:
    tls = HookTls(Path("/cert.pem"), KEY)
    config = with_users({}, webhook=AccountHook("/efax", KEY))
    config = replace(config, webhook=WebhookConfig("::", 8443, tls))
    assert consequences(config) == [
        "poller listens for eFax's notices on [::]:8443, with TLS, for main"
    ]


@pytest.mark.parametrize(
    ("user", "storage", "said"),
    [
        pytest.param({"delete": Delete(59 * MINUTE)}, MOVE, "delete.after is 59m", id="soon"),
        pytest.param({"delete": Delete(HOUR)}, MOVE, None, id="after an hour"),
        pytest.param(
            {"delete": Delete(DAY, taken="delete")},
            StorageConfig(),
            "delete.taken is 'delete' but storage.consumers is 'read'",
            id="taken by nobody",
        ),
        pytest.param({"delete": Delete(DAY, taken="delete")}, MOVE, None, id="taken"),
        pytest.param({"delete": Delete(taken="delete")}, StorageConfig(), None, id="never"),
        pytest.param(
            {"canary": Canary(30 * MINUTE)},
            MOVE,
            "canary.every is 30m: 48 faxes a day, for which eFax may charge",
            id="often",
        ),
        pytest.param({"canary": Canary(HOUR)}, MOVE, None, id="every hour"),
        pytest.param(
            {"canary": Canary(DAY), "poll": Poll(every=None, cron="0 8,12,16 * * *")},
            MOVE,
            "the canary is late after 30m, but poller polls only every 16h",
            id="late before a poll",
        ),
        pytest.param(
            {"sent": Sent("image", path="{user}/aux/{fax_id}")},
            MOVE,
            "a Windows client cannot open 'aux' in the path u0/aux/1.pdf: change sent.path",
            id="sent",
        ),
        pytest.param({"sent": Sent(path="{user}/aux/{fax_id}")}, MOVE, None, id="not archived"),
        pytest.param(
            {},
            StorageConfig(path="con/{fax_id}", consumers="move"),
            "a Windows client cannot open 'con' in the path con/1.pdf: change storage.path",
            id="received",
        ),
        pytest.param({}, StorageConfig(path="con/{fax_id}"), None, id="read only"),
    ],
)
def test_what_may_be_a_mistake_of_a_user_is_warned_of(
    user: dict[str, Any], storage: StorageConfig, said: str | None
) -> None:
    found = warnings(replace(with_users(user), storage=storage))
    assert len(found) == (said is not None)
    assert not said or found[0].startswith(f"main/u0: {said}")


def test_what_many_users_inherit_is_one_line() -> None:
    (sentence,) = warnings(with_users(*3 * [{"delete": Delete(timedelta(minutes=5))}]))
    assert sentence.startswith("main/u0 and 2 more: delete.after is 5m")


def test_one_number_of_two_users_is_warned_of_and_not_shown() -> None:
    (sentence,) = warnings(with_users(*2 * [{"number": NUMBER}], {"number": "13235550143"}))
    assert sentence == "main: these users have the same number: u0, u1; is this a mistake?"


@pytest.mark.parametrize(
    ("account", "heartbeat", "is_said"),
    [
        pytest.param({"proxy": PROXY}, Heartbeat("https://hc.example"), True, id="none"),
        pytest.param(
            {"proxy": PROXY}, Heartbeat("https://hc.example", proxy=PROXY), False, id="both"
        ),
        pytest.param({"proxy": PROXY}, Heartbeat(), False, id="no heartbeat"),
        pytest.param({}, Heartbeat("https://hc.example"), False, id="no proxy"),
    ],
)
def test_heartbeat_without_the_proxy_of_the_accounts_is_warned_of(
    account: dict[str, Any], heartbeat: Heartbeat, is_said: bool
) -> None:
    found = warnings(replace(with_users({}, **account), heartbeat=heartbeat))
    assert any("set heartbeat.proxy too" in sentence for sentence in found) == is_said
