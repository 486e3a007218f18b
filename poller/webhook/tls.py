"""The listener's certificate and key."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poller.config.model import HookTls
from poller.errors import CannotStart


def server_context(tls: HookTls, key: str) -> ssl.SSLContext:
    """Return the TLS context. Raises CannotStart if certificate or key are unusable."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        with _as_file(key) as key_file:
            # With a password given, OpenSSL does not ask for one on the terminal.
            context.load_cert_chain(tls.cert, key_file, password="")
    except ssl.SSLError as error:
        raise CannotStart(
            f"the certificate {tls.cert} and the key {tls.key.name} of webhook.tls cannot be used"
            f" ({_reason(error)}); name a certificate chain and its private key, both as PEM"
        ) from error
    except OSError as error:
        raise CannotStart(
            f"the certificate {tls.cert} of webhook.tls cannot be read: {error.strerror or error}"
        ) from error
    return context


def _reason(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key belongs to another certificate"
    return (error.reason or "not PEM").lower().replace("_", " ")


@contextmanager
def _as_file(key: str) -> Iterator[Path]:
    """Yield the key as a file, which OpenSSL needs; it is in memory and nobody else can read it."""
    descriptor = os.memfd_create("webhook-key", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "w", closefd=False) as file:
            file.write(key)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
