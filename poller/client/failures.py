"""Explain in one sentence why no whole answer came and what to check; never in aiohttp's words.

Those may contain addresses with fax ids, and the exceptions' arguments the request's headers.
"""

import errno
import os
import ssl
from pathlib import Path

import aiohttp
from yarl import URL

from poller.client.resolver import NotLookedUp
from poller.config.model import Account
from poller.efax.requests import Call
from poller.errors import ApiError, BadAnswer, Unreachable

_NOT_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,  # its answer to CONNECT
)


def as_api_error(error: aiohttp.ClientError, call: Call, account: Account) -> ApiError:
    """Map an aiohttp error to ours."""
    host = URL(account.base_url).host
    proxy = URL(account.proxy).host if account.proxy else None
    is_answer = isinstance(error, aiohttp.ClientResponseError)
    if is_answer and not isinstance(error, aiohttp.ClientHttpProxyError):
        return BadAnswer(f"The answer of {host} to the {call} call is not valid HTTP.")
    unreachable = Unreachable(_sentence(error, call, str(host), proxy))
    unreachable.was_sent = not isinstance(error, _NOT_CONNECTED)
    return unreachable


def _sentence(  # noqa: PLR0911  # a table of sentences
    error: aiohttp.ClientError, call: Call, host: str, proxy: str | None
) -> str:
    match error:
        case aiohttp.ClientHttpProxyError():
            return (
                f"The proxy {proxy} did not connect to {host} (HTTP {error.status}): check proxy."
            )
        case aiohttp.ClientConnectorCertificateError():
            return f"The certificate of {host} is not trusted{_why_not_trusted(error)}"
        case aiohttp.ClientConnectorSSLError():
            return f"No TLS connection to {host}: check base_url, firewalls and proxies."
        case aiohttp.ClientProxyConnectionError():
            return f"The proxy {proxy} cannot be reached: check proxy."
        case aiohttp.ClientConnectorDNSError():
            known = isinstance(error.os_error, NotLookedUp)
            why = str(error.os_error) if known else "check DNS and the spelling"
            return f"The name {proxy or host} cannot be resolved: {why}."
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
            return f"{host} refused the connection: check base_url and the firewall."
        case aiohttp.ClientConnectorError():
            why = error.os_error.strerror or "no connection"
            return f"No connection to {host} ({why}): check the network."
        case aiohttp.ConnectionTimeoutError():
            return (
                f"{host} did not accept the connection in time: check the network and the firewall."
            )
        case aiohttp.ServerTimeoutError():
            return f"{host} stopped sending during the {call} call."
        case aiohttp.ClientPayloadError():
            return f"{host} broke off its answer to the {call} call."
    return f"{host} closed the connection during the {call} call."


def _why_not_trusted(error: aiohttp.ClientConnectorCertificateError) -> str:
    known = ssl.get_default_verify_paths()  # None if there is no such file or directory
    has_authorities = known.cafile or any(Path(known.capath or os.devnull).glob("*"))
    if not has_authorities:  # containers often have none
        return ": this system has no CA certificates; install the package ca-certificates."
    why = getattr(error.certificate_error, "verify_message", "") or "it names another host"
    return f" ({why}): check the clock, and tls.ca_file if a company's own CA signs certificates."
