"""Read a secret where its reference says, when a command signs in and not before."""

import string
from collections.abc import Mapping
from pathlib import Path

from poller.config.addresses import SecretRef
from poller.errors import ConfigError, Problem

MAX_SECRET = 64 << 10


def read_secret(ref: SecretRef, environ: Mapping[str, str]) -> str:
    """Give the secret without the blanks around it: no key has any, and copying adds some.

    Raises ConfigError, which names the reference and its place and never shows what was found.
    """
    secret = _stripped(_found(ref, environ))
    if not secret:
        raise _problem(ref, "is empty; put the secret there")
    if not secret.isprintable():
        raise _problem(ref, "holds more than one line of text; put the secret alone there")
    return secret


def blanks_problem(ref: SecretRef, environ: Mapping[str, str]) -> Problem | None:
    """Say that there are blanks around the secret, more than the newline that editors leave.

    Raises ConfigError as `read_secret` does.
    """
    found = _found(ref, environ).removesuffix("\n").removesuffix("\r")
    if found == _stripped(found):
        return None
    return _described(ref, "has blanks around the secret, which are left out; remove them")


def _found(ref: SecretRef, environ: Mapping[str, str]) -> str:
    return _from_environment(ref, environ) if ref.kind == "env" else _from_file(ref, environ)


def _stripped(found: str) -> str:
    """Also without marks of byte order and spaces that take no room, which nobody sees."""
    return found.strip(string.whitespace + "\u00a0\u200b\ufeff")


def _from_environment(ref: SecretRef, environ: Mapping[str, str]) -> str:
    if ref.name not in environ:
        raise _problem(ref, "is not set; set it where poller is started")
    return environ[ref.name]


def _from_file(ref: SecretRef, environ: Mapping[str, str]) -> str:
    file = _path(ref, environ)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_SECRET + 1)
    except OSError as error:
        raise _problem(ref, f"cannot be read: {error.strerror}{_hint(ref)}") from None
    if len(data) > MAX_SECRET:
        raise _problem(ref, "is larger than any secret; put the secret alone there")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _problem(ref, "is not UTF-8 text; put the secret there as text") from None


def _path(ref: SecretRef, environ: Mapping[str, str]) -> Path:
    if ref.kind == "file":
        return Path(ref.name)
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise _problem(
            ref,
            "cannot be read: $CREDENTIALS_DIRECTORY is not set; systemd sets it for the service, "
            "elsewhere write {file: PATH} or {env: NAME}",
        )
    return Path(directory, ref.name)


def _hint(ref: SecretRef) -> str:
    if ref.kind == "file":
        return ""
    return f"; add LoadCredential={ref.name}:/path/of/the/secret to the unit and restart it"


_NAMES = {"credential": "credential", "file": "file", "env": "environment variable"}


def _problem(ref: SecretRef, message: str) -> ConfigError:
    return ConfigError([_described(ref, message)])


def _described(ref: SecretRef, message: str) -> Problem:
    sentence = f"{_NAMES[ref.kind]} {ref.name} {message}"
    return Problem(ref.source, ref.line, ref.key, sentence)
