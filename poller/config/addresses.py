"""Parse references to secrets, paths, URLs, the ledger's URL and addresses to listen on.

No message shows a URL or a value found where a secret belongs: it may contain a secret.
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
    """Where to read a secret; poller reads it only when a command needs it.

    `source`, `line` and `key` locate the reference in the files, for messages. `is_pem`: the secret
    is a private key of several lines.
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
    """Parse a reference to a secret; never show any other value found there."""
    if not isinstance(node.value, dict):
        raise WrongValueError(
            f"a secret is never written here; say where to read it: {_REFERENCE_FORM}"
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
    """Parse a path; a relative one is relative to the directory of its configuration file."""
    value = text(node)
    if value.startswith("~"):
        raise WrongValueError("'~' is not expanded; write the whole path")
    return Path(os.path.normpath(node.source.directory / value))


SQLITE = "sqlite:///"
POSTGRESQL = "postgresql://"


def state_url(node: Node) -> str:
    """Parse libpq's URL, or `sqlite:///` and a path relative to the file's directory."""
    value = text(node)
    if value.startswith("postgres"):
        return _postgresql(value)
    form = "write sqlite:////absolute/path.db, or sqlite:///relative/path.db"
    file = value.removeprefix(SQLITE)
    if file == value or file in {"", ":memory:"} or file.endswith(("/", "/.", "/..")):
        raise WrongValueError(f"must be the file of an SQLite database; {form}")
    if re.search(r"[?#]", file):
        raise WrongValueError(f"must not contain '?' or '#'; {form}")
    return f"{SQLITE}{path(replace(node, value=file))}"


def _postgresql(value: str) -> str:
    if not re.fullmatch(r"postgresql://[^\s#\\]+", value):
        raise WrongValueError("must be a URL such as postgresql://poller@db.example/poller")
    address, _, options = value.removeprefix(POSTGRESQL).partition("?")
    user, has_user, _ = address.rpartition("@")
    if (has_user and ":" in user) or re.search("(^|&)(ssl)?password=", options):
        raise WrongValueError(
            "must not contain a password; write it elsewhere, and state.password: {credential: NAME}"
        )
    return value


_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]((/[A-Za-z0-9_-][A-Za-z0-9._=-]*)*)/?")


def bucket_url(node: Node) -> str:
    """Parse `s3://bucket/prefix`; return it without a slash at the end."""
    value = text(node)
    if not _BUCKET.fullmatch(value):
        raise WrongValueError(
            "must be s3:// with a bucket, and a prefix if you like, such as s3://faxes/poller"
        )
    return value.rstrip("/")


def endpoint(node: Node) -> str:
    """Parse the URL of an S3-compatible store, as `base_url` does."""
    return _service_url(node, "https://s3.example.com")


def region(node: Node) -> str:
    value = text(node)
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", value):
        raise WrongValueError("must be the name of a region such as eu-central-1")
    return value


def base_url(node: Node) -> str:
    """Parse an https URL, or http to loopback; return it without a slash at the end."""
    return _service_url(node, "https://api.securedocex.com")


def _service_url(node: Node, example: str) -> str:
    url = _url(node, example)
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
    """Split a URL; no message shows it, because it may contain a password."""
    value = text(node)
    try:
        url = urlsplit(value)
        usable = bool(url.scheme and url.hostname) and url.port != 0
        # As the resolver does: it raises if a label is empty or longer than 63 characters.
        str(url.hostname).encode("idna")
    except ValueError:
        usable = False
    if not usable or re.search(r"[\s\\]", value):
        raise WrongValueError(f"must be a URL such as {example}")
    if url.scheme not in {"http", "https"}:
        raise WrongValueError("must begin with http:// or https://")
    if "@" in url.netloc:
        raise WrongValueError(
            "must not contain a user or password: secrets do not belong in this file"
        )
    if not query and re.search(r"[?#]", value):
        raise WrongValueError(f"must not contain '?' or '#'; write a URL such as {example}")
    return url


def hook_path(node: Node) -> str:
    """Parse the web-hook's path, which eFax's portal also has; never show it, as it may be secret."""
    value = text(node)
    if not re.fullmatch(r"(/(?!\.\.?(/|$))[A-Za-z0-9._~-]+)+", value):  # no part is '.' or '..'
        raise WrongValueError(
            "must be a path such as /efax/main: letters, digits, '.', '_', '~', '-'"
        )
    return value


def is_loopback(host: str) -> bool:
    """Return whether `host`, without brackets, is in 127.0.0.0/8, ::1 or localhost."""
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def listen(example: int, off: str) -> Parser[tuple[str, int]]:
    """Parse `host:port`; return the host of `[::1]:9410` without brackets. Port 0 takes a free port.

    `off` is what to write to turn the listener off.
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
