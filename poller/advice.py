"""Facts about a valid configuration that an operator should know: consequences, likely mistakes."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta

from poller import naming
from poller.config.model import HOUR, Account, Config, User
from poller.plan import interval_of, spelled

_DAY_S = 86_400.0


def consequences(settings: Config) -> Iterator[str]:
    """Yield what is on that costs money, cannot be undone, or opens a port; by default nothing."""
    users, all_ = settings.users, f"of {len(settings.users):,} users"
    if archived := [user.sent.archive for user in users if user.sent.archive != "none"]:
        yield (
            f"poller archives sent faxes for {len(archived):,} {all_}, "
            f"for {archived.count('image'):,} of them with their pages"
        )
    if afters := [user.delete.after for user in users if user.delete.after is not None]:
        yield (
            f"poller deletes faxes at eFax for {len(afters):,} {all_}, {spelled(min(afters))} or more "
            "after storing them; nothing brings a deleted fax back"
        )
    if canaries := [user.canary for user in users if user.canary is not None]:
        a_day = sum(_DAY_S / canary.every.total_seconds() for canary in canaries)
        yield (
            f"poller sends canaries for {len(canaries):,} {all_}, about {_rounded(a_day)} faxes a day, "
            "for which eFax may charge"
        )
    if settings.webhook is not None:
        hook = settings.webhook
        address = f"[{hook.host}]" if ":" in hook.host else hook.host
        names = [account.name for account in settings.accounts if account.webhook is not None]
        yield (
            f"poller listens for eFax's notices on {address}:{hook.port}, "
            f"{'with TLS' if hook.tls else 'without TLS, from a proxy on this server'}, "
            f"for {', '.join(names)}"
        )


def warnings(settings: Config, now: datetime) -> Iterator[str]:
    """Yield what may be a mistake; `now` serves for the example of a path."""
    heartbeat = settings.heartbeat
    have_proxy = any(account.proxy is not None for account in settings.accounts)
    if have_proxy and heartbeat.url is not None and heartbeat.proxy is None:
        yield (
            "accounts have a proxy but the heartbeat has none: if this server reaches the "
            "internet only through a proxy, set heartbeat.proxy too"
        )
    for account in settings.accounts:
        yield from _same_numbers(account)
    said: dict[str, list[str]] = {}
    for user in settings.users:
        for sentence in _of_user(user, settings, now):
            said.setdefault(sentence, []).append("/".join(user.names))
    for sentence, (first, *more) in said.items():  # one line for a setting that thousands inherit
        yield f"{first}{f' and {len(more):,} more' if more else ''}: {sentence}"


def _rounded(a_day: float) -> str:
    return f"{a_day:,.0f}" if a_day >= 10 else f"{a_day:.2g}"


def _same_numbers(account: Account) -> Iterator[str]:
    numbers = Counter(user.number for user in account.users if user.number is not None)
    for number in (number for number, count in numbers.items() if count > 1):
        same = ", ".join(user.name for user in account.users if user.number == number)
        yield f"{account.name}: these users have the same number: {same}; is this a mistake?"


def _of_user(user: User, settings: Config, now: datetime) -> Iterator[str]:
    delete, canary, moves = user.delete, user.canary, settings.storage.consumers == "move"
    if delete.after is not None and delete.after < HOUR:
        yield (
            f"delete.after is {spelled(delete.after)}: nothing brings a deleted fax back, and this "
            "is too short to notice that something is wrong; 7d or more is usual"
        )
    if delete.after is not None and delete.taken == "delete" and not moves:
        yield (
            "delete.taken is 'delete' but storage.consumers is 'read': consumers that only read take "
            "no files away, so missing files are lost files; set delete.taken: keep, or "
            "storage.consumers: move"
        )
    if canary is not None and canary.every < HOUR:
        yield (
            f"canary.every is {spelled(canary.every)}: "
            f"{timedelta(days=1) / canary.every:,.0f} faxes a day, for which eFax may charge"
        )
    if canary is not None and (pause := interval_of(user.poll, 1.0, now)) >= canary.within:
        yield (
            f"the canary is late after {spelled(canary.within)}, but poller polls only every "
            f"{spelled(pause)}: raise canary.within"
        )
    if moves:  # consumers that move files often use a share
        yield from _closed_to_windows(user, settings.storage.path, "storage.path", now)
        if user.sent.archive != "none":
            yield from _closed_to_windows(user, user.sent.path, "sent.path", now)


def _closed_to_windows(user: User, template: str, key: str, now: datetime) -> Iterator[str]:
    path = naming.fax_path(template, account=user.account, user=user.name, fax_id="1", at=now)
    if (part := naming.part_closed_to_windows(f"{path}.pdf")) is not None:
        yield (
            f"a Windows client cannot open {part!r} in the path {path}.pdf: change {key} or the name"
        )
