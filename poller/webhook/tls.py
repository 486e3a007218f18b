"""The listener's certificate and key."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poller.config.model import HookTls
from poller.errors import CannotStart


def server_context(tls: HookTls, key: str) -> ssl.SSLContext:
    """Make what connections are encrypted with; CannotStart where certificate and key are unusable."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        with _as_file(key) as key_file:
            # Without a password there is no question for one on the terminal.
            context.load_cert_chain(tls.cert, key_file, password="")
    except ssl.SSLError as error:
        raise CannotStart(
            f"the certificate {tls.cert} and the key {tls.key.name} of webhook.tls cannot be used"
            f" ({_reason(error)}); put there the chain and the key that belongs to it, both as PEM"
        ) from error
    except OSError as error:
        raise CannotStart(
            f"the certificate {tls.cert} of webhook.tls cannot be read: {error.strerror or error}"
        ) from error
    return context


def _reason(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    return (error.reason or "no PEM").lower().replace("_", " ")


@contextmanager
def _as_file(key: str) -> Iterator[Path]:
    """OpenSSL reads a key from a file only: this one is in memory, and nobody else's."""
    descriptor = os.memfd_create("webhook-key", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "w", closefd=False) as file:
            file.write(key)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
