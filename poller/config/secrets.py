"""Read a secret from the place its reference names, and only when a command needs it."""

import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path

from poller.config.addresses import SecretRef
from poller.config.model import Account
from poller.errors import ConfigError, Problem

MAX_SECRET = 64 << 10
_SHORTEST_LOG_KEY = 32


def read_secret(ref: SecretRef, environ: Mapping[str, str]) -> str:
    """Return the secret without surrounding blanks: no key has any, and copying may add some.

    For a secret that `is_pem`, return the whole text.

    Raises ConfigError, which names the reference and its position and never shows the content.
    """
    secret = _stripped(_found(ref, environ))
    if not secret:
        raise _unusable(ref, "is empty; put the secret there")
    if ref.is_pem:
        return _private_key(ref, secret)
    if not secret.isprintable():
        raise _unusable(ref, "contains more than one line; put only the secret there")
    return secret


def _private_key(ref: SecretRef, pem: str) -> str:
    if not re.search("^-----BEGIN [A-Z ]*PRIVATE KEY-----", pem, re.MULTILINE):
        raise _unusable(ref, "contains no private key; put one there in PEM form")
    if "ENCRYPTED" in pem:  # in its first line, or in the next one
        raise _unusable(ref, "is locked with a password; put the key there without one")
    return pem


def read_log_key(ref: SecretRef, environ: Mapping[str, str]) -> bytes:
    """Return the key of the codes that replace fax numbers; raises ConfigError.

    With a key that can be guessed, so can the ten digits behind a code.
    """
    secret = read_secret(ref, environ)
    if len(secret) < _SHORTEST_LOG_KEY:
        told = f"is shorter than {_SHORTEST_LOG_KEY} characters; `openssl rand -hex 32` makes a good one"
        raise _unusable(ref, told)
    return secret.encode()


def hook_secrets(accounts: Iterable[Account], environ: Mapping[str, str]) -> dict[str, str]:
    """Read the secrets that sign eFax's notices, by App ID, for accounts with a web-hook.

    Raises ConfigError as `read_secret` does.
    """
    return {
        account.app_id: read_secret(account.webhook.secret, environ)
        for account in accounts
        if account.webhook is not None
    }


def blanks_problem(ref: SecretRef, environ: Mapping[str, str]) -> Problem | None:
    """Return a problem if blanks surround the secret, other than the newline that editors add.

    Raises ConfigError as `read_secret` does.
    """
    found = _found(ref, environ).removesuffix("\n").removesuffix("\r")
    if found == _stripped(found):
        return None
    return _problem(ref, "has blanks around the secret, which poller ignores; remove them")


def _stripped(found: str) -> str:
    """Strip blanks, and also byte order marks and zero-width spaces, which nobody sees."""
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
                "service; elsewhere use {file: PATH} or {env: NAME}",
            )
    try:
        with Path(directory, ref.name).open("rb") as stream:
            data = stream.read(MAX_SECRET + 1)
    except OSError as error:
        raise _unusable(ref, f"cannot be read: {error.strerror}{hint}") from None
    if len(data) > MAX_SECRET:
        raise _unusable(ref, "is too large to be a secret; put only the secret there")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _unusable(ref, "is not UTF-8 text; put the secret there as text") from None


def _unusable(ref: SecretRef, message: str) -> ConfigError:
    return ConfigError([_problem(ref, message)])


def _problem(ref: SecretRef, message: str) -> Problem:
    what = "environment variable" if ref.kind == "env" else ref.kind
    return Problem(ref.source, ref.line, ref.key, f"{what} {ref.name} {message}")
