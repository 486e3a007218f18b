"""Where something is: secrets' references, paths, URLs, the ledger, the address to listen on.

No message shows a URL or what stands in a secret's place: there may be a secret in it.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import cast
from urllib.parse import SplitResult, urlsplit

from poller.config.document import Node
from poller.config.model import SecretRef
from poller.config.report import quoted
from poller.config.values import WrongValueError, kind, text

_REFERENCE_KINDS = ("credential", "file", "env")
_REFERENCE_FORM = "{credential: NAME}, {file: PATH} or {env: NAME}"


def secret(node: Node) -> SecretRef:
    """A reference to a secret; whatever else stands there is never shown."""
    if not isinstance(node.value, dict):
        raise WrongValueError(
            f"a secret is never written here; say where it is to be had: {_REFERENCE_FORM}"
        )
    if len(node.value) != 1 or next(iter(node.value)) not in _REFERENCE_KINDS:
        raise WrongValueError(f"must have exactly one of credential, file, env: {_REFERENCE_FORM}")
    ((found, child),) = node.value.items()
    written = (node.source.name, node.line, node.key)
    if found == "credential":
        credential = _matching(child, r"(?!\.)[A-Za-z0-9._-]{1,255}", "a credential")
        return SecretRef("credential", credential, *written)
    if found == "env":
        variable = _matching(child, r"[A-Za-z_][A-Za-z0-9_]*", "a variable")
        return SecretRef("env", variable, *written)
    try:
        return SecretRef("file", str(path(child)), *written)
    except WrongValueError as wrong:
        raise WrongValueError(str(wrong), child) from wrong


def _matching(node: Node, pattern: str, what: str) -> str:
    if not isinstance(node.value, str) or not re.fullmatch(pattern, node.value):
        raise WrongValueError(f"must be the name of {what}, never the secret itself", node)
    return node.value


def path(node: Node) -> Path:
    """A path; a relative one starts from the directory of the file in which it stands."""
    value = text(node)
    if value.startswith("~"):
        raise WrongValueError("'~' is not expanded; write the whole path")
    return Path(os.path.normpath(node.source.directory / value))


def state_url(node: Node) -> str:
    """`sqlite:///` and an absolute path, made from a relative one where it stands."""
    value = text(node)
    form = "write sqlite:////absolute/path.db, or sqlite:///relative/path.db"
    if value.startswith("postgres"):
        raise WrongValueError(f"PostgreSQL is not supported yet; {form}")
    file = value.removeprefix("sqlite:///")
    if file == value or file in {"", ":memory:"} or file.endswith(("/", "/.", "/..")):
        raise WrongValueError(f"must be the file of an SQLite database; {form}")
    if re.search(r"[?#]", file):
        raise WrongValueError(f"must not hold '?' or '#'; {form}")
    return f"sqlite:///{path(Node(node.source, node.line, node.key, file))}"


def base_url(node: Node) -> str:
    """https, or http to loopback; without a slash at the end."""
    url = _url(node, {"https", "http"}, "https://api.securedocex.com")
    if url.scheme == "http" and not is_loopback(cast(str, url.hostname)):
        raise WrongValueError("must begin with https:// (http:// is for loopback only)")
    return url.geturl().rstrip("/")


def heartbeat_url(node: Node) -> str:
    return _url(node, {"https", "http"}, "https://monitor.example/ping", query=True).geturl()


def proxy_url(node: Node) -> str:
    url = _url(node, {"http", "https"}, "http://proxy.example:3128")
    if url.path.rstrip("/"):
        raise WrongValueError("a proxy has no path; write http://proxy.example:3128")
    return url.geturl().rstrip("/")


def _url(node: Node, schemes: set[str], example: str, *, query: bool = False) -> SplitResult:
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
    if url.scheme not in schemes:
        raise WrongValueError(f"must begin with {' or '.join(f'{s}://' for s in sorted(schemes))}")
    if "@" in url.netloc:
        raise WrongValueError("must not hold a user or password: this file is no place for secrets")
    if not query and re.search(r"[?#]", value):
        raise WrongValueError(f"must not hold '?' or '#'; write a URL such as {example}")
    return url


def is_loopback(host: str) -> bool:
    """127.0.0.0/8, ::1 or localhost; `host` without brackets."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address in ipaddress.IPv4Network("127.0.0.0/8")
    return address == ipaddress.IPv6Address("::1")


_LISTEN = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def listen(node: Node) -> tuple[str, int]:
    """`host:port`; the host of `[::1]:9410` without its brackets; port 0 takes a free one."""
    form = "write host:port such as 127.0.0.1:9410 or [::1]:9410, or null to turn it off"
    if not isinstance(node.value, str):
        raise WrongValueError(f"is {kind(node.value)}; {form}")
    match = _LISTEN.fullmatch(node.value)
    if match is None or int(match[2]) > 65535:
        raise WrongValueError(f"is {quoted(node.value)}; {form}")
    return match[1].strip("[]"), int(match[2])
