"""Read a secret where its reference says, when a command signs in and not before."""

import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path

from poller.config.addresses import SecretRef
from poller.config.model import Account
from poller.errors import ConfigError, Problem

MAX_SECRET = 64 << 10


def read_secret(ref: SecretRef, environ: Mapping[str, str]) -> str:
    """Give the secret without the blanks around it: no key has any, and copying adds some.

    What comes of one that `is_pem` is the whole text.

    Raises ConfigError, which names the reference and its place and never shows what was found.
    """
    secret = _stripped(_found(ref, environ))
    if not secret:
        raise _unusable(ref, "is empty; put the secret there")
    if ref.is_pem:
        return _private_key(ref, secret)
    if not secret.isprintable():
        raise _unusable(ref, "holds more than one line of text; put the secret alone there")
    return secret


def _private_key(ref: SecretRef, pem: str) -> str:
    if not re.search("^-----BEGIN [A-Z ]*PRIVATE KEY-----", pem, re.MULTILINE):
        raise _unusable(ref, "holds no private key; put one there in PEM form")
    if "ENCRYPTED" in pem:  # in its first line, or in the next one
        raise _unusable(ref, "is locked with a password; put the key there without one")
    return pem


def hook_secrets(accounts: Iterable[Account], environ: Mapping[str, str]) -> dict[str, str]:
    """Read what eFax's notices are signed with, by App ID, where an account has a web-hook.

    Raises ConfigError as `read_secret` does.
    """
    return {
        account.app_id: read_secret(account.webhook.secret, environ)
        for account in accounts
        if account.webhook is not None
    }


def blanks_problem(ref: SecretRef, environ: Mapping[str, str]) -> Problem | None:
    """Say that there are blanks around the secret, more than the newline that editors leave.

    Raises ConfigError as `read_secret` does.
    """
    found = _found(ref, environ).removesuffix("\n").removesuffix("\r")
    if found == _stripped(found):
        return None
    return _problem(ref, "has blanks around the secret, which are left out; remove them")


def _stripped(found: str) -> str:
    """Also without marks of byte order and spaces that take no room, which nobody sees."""
    return found.strip(string.whitespace + "\u00a0\u200b\ufeff")


def _found(ref: SecretRef, environ: Mapping[str, str]) -> str:
    hint, directory = "", ""
    if ref.kind == "env":
        if ref.name not in environ:
            raise _unusable(ref, "is not set; set it where poller is started")
        return environ[ref.name]
    if ref.kind == "credential":
        hint = f"; add LoadCredential={ref.name}:/path/of/the/secret to the unit and restart it"
        directory = environ.get("CREDENTIALS_DIRECTORY", "")
        if not directory:
            raise _unusable(
                ref,
                "cannot be read: $CREDENTIALS_DIRECTORY is not set; systemd sets it for the "
                "service, elsewhere write {file: PATH} or {env: NAME}",
            )
    try:
        with Path(directory, ref.name).open("rb") as stream:
            data = stream.read(MAX_SECRET + 1)
    except OSError as error:
        raise _unusable(ref, f"cannot be read: {error.strerror}{hint}") from None
    if len(data) > MAX_SECRET:
        raise _unusable(ref, "is larger than any secret; put the secret alone there")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _unusable(ref, "is not UTF-8 text; put the secret there as text") from None


def _unusable(ref: SecretRef, message: str) -> ConfigError:
    return ConfigError([_problem(ref, message)])


def _problem(ref: SecretRef, message: str) -> Problem:
    what = "environment variable" if ref.kind == "env" else ref.kind
    return Problem(ref.source, ref.line, ref.key, f"{what} {ref.name} {message}")
