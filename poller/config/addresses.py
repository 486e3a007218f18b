"""Where something is: secrets' references, paths, URLs, the ledger, the address to listen on.

No message shows a URL or what stands in a secret's place: there may be a secret in it.
"""

import ipaddress
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast
from urllib.parse import SplitResult, urlsplit

from poller.config.position import Node, quoted
from poller.config.values import Parser, WrongValueError, kind_of, text


@dataclass(frozen=True)
class SecretRef:
    """Where a secret is to be had; it is read only when a command needs it.

    `source`, `line` and `key` say where the reference is written, for messages. `is_pem`: it is a
    private key, which has many lines.
    """

    kind: Literal["credential", "file", "env"]
    name: str
    source: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)
    key: str = field(default="", compare=False)
    is_pem: bool = field(default=False, compare=False)


_NAMES: dict[Literal["credential", "env"], tuple[str, str]] = {
    "credential": (r"(?!\.)[A-Za-z0-9._-]{1,255}", "a credential"),
    "env": (r"[A-Za-z_][A-Za-z0-9_]*", "a variable"),
}
_REFERENCE_FORM = "{credential: NAME}, {file: PATH} or {env: NAME}"


def secret(node: Node) -> SecretRef:
    """A reference to a secret; whatever else stands there is never shown."""
    if not isinstance(node.value, dict):
        raise WrongValueError(
            f"a secret is never written here; say where it is to be had: {_REFERENCE_FORM}"
        )
    if len(node.value) != 1 or not node.value.keys() <= {"file", *_NAMES}:
        raise WrongValueError(f"must have exactly one of credential, file, env: {_REFERENCE_FORM}")
    written = (node.source.name, node.line, node.key)
    if (child := node.entry("file")) is not None:
        try:
            return SecretRef("file", str(path(child)), *written)
        except WrongValueError as wrong:
            raise WrongValueError(str(wrong), child) from wrong
    found = next(name for name in _NAMES if name in node.value)
    child = node.value[found]
    pattern, what = _NAMES[found]
    if not isinstance(child.value, str) or not re.fullmatch(pattern, child.value):
        raise WrongValueError(f"must be the name of {what}, never the secret itself", child)
    return SecretRef(found, child.value, *written)


def pem_secret(node: Node) -> SecretRef:
    return replace(secret(node), is_pem=True)


def path(node: Node) -> Path:
    """A path; a relative one starts from the directory of the file in which it stands."""
    value = text(node)
    if value.startswith("~"):
        raise WrongValueError("'~' is not expanded; write the whole path")
    return Path(os.path.normpath(node.source.directory / value))


SQLITE = "sqlite:///"


def state_url(node: Node) -> str:
    """`sqlite:///` and an absolute path, made from a relative one where it stands."""
    value = text(node)
    form = "write sqlite:////absolute/path.db, or sqlite:///relative/path.db"
    if value.startswith("postgres"):
        raise WrongValueError(f"PostgreSQL is not supported yet; {form}")
    file = value.removeprefix(SQLITE)
    if file == value or file in {"", ":memory:"} or file.endswith(("/", "/.", "/..")):
        raise WrongValueError(f"must be the file of an SQLite database; {form}")
    if re.search(r"[?#]", file):
        raise WrongValueError(f"must not hold '?' or '#'; {form}")
    return f"{SQLITE}{path(replace(node, value=file))}"


def base_url(node: Node) -> str:
    """https, or http to loopback; without a slash at the end."""
    url = _url(node, "https://api.securedocex.com")
    if url.scheme == "http" and not is_loopback(cast(str, url.hostname)):
        raise WrongValueError("must begin with https:// (http:// is for loopback only)")
    return url.geturl().rstrip("/")


def heartbeat_url(node: Node) -> str:
    return _url(node, "https://monitor.example/ping", query=True).geturl()


def proxy_url(node: Node) -> str:
    url = _url(node, "http://proxy.example:3128")
    if url.path.rstrip("/"):
        raise WrongValueError("a proxy has no path; write http://proxy.example:3128")
    return url.geturl().rstrip("/")


def _url(node: Node, example: str, *, query: bool = False) -> SplitResult:
    """Split a URL; no message shows it, a password may stand in it."""
    value = text(node)
    try:
        url = urlsplit(value)
        usable = bool(url.scheme and url.hostname) and url.port != 0
        # As the resolver will: a part of a name that is empty or over 63 characters has no encoding.
        str(url.hostname).encode("idna")
    except ValueError:
        usable = False
    if not usable or re.search(r"[\s\\]", value):
        raise WrongValueError(f"must be a URL such as {example}")
    if url.scheme not in {"http", "https"}:
        raise WrongValueError("must begin with http:// or https://")
    if "@" in url.netloc:
        raise WrongValueError("must not hold a user or password: this file is no place for secrets")
    if not query and re.search(r"[?#]", value):
        raise WrongValueError(f"must not hold '?' or '#'; write a URL such as {example}")
    return url


def hook_path(node: Node) -> str:
    """The path of a URL; eFax is given it in the portal. Never shown: some make it hard to guess."""
    value = text(node)
    if not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)+", value):  # no part is '.' or '..'
        raise WrongValueError(
            "must be a path such as /efax/main: letters, digits, '.', '_', '~', '-'"
        )
    return value


def is_loopback(host: str) -> bool:
    """127.0.0.0/8, ::1 or localhost; `host` without brackets."""
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def listen(example: int, off: str) -> Parser[tuple[str, int]]:
    """`host:port`; the host of `[::1]:9410` without its brackets; port 0 takes a free one.

    `off` is what to write for no listener at all.
    """
    form = (
        f"write host:port such as 127.0.0.1:{example} or [::1]:{example}, or {off} to turn it off"
    )

    def parser(node: Node) -> tuple[str, int]:
        if not isinstance(node.value, str):
            raise WrongValueError(f"is {kind_of(node.value)}; {form}")
        match = _LISTEN.fullmatch(node.value)
        if match is None or int(match[2]) > 65535:
            raise WrongValueError(f"is {quoted(node.value)}; {form}")
        return match[1].strip("[]"), int(match[2])

    return parser
