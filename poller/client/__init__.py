"""The client of one account: the only package that talks to eFax, paces, signs in and retries."""

from poller.client.client import Client
from poller.client.ports import ImageSink, Observer, Ports, SignInStore, Timeouts
from poller.client.resolver import Resolver
from poller.client.transport import tls_context

__all__ = [
    "Client",
    "ImageSink",
    "Observer",
    "Ports",
    "Resolver",
    "SignInStore",
    "Timeouts",
    "tls_context",
]
