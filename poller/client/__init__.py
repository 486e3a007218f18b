"""The client of one account: the only part that talks to eFax, paces, signs in and repeats."""

from poller.client.body import Timeouts
from poller.client.calls import Client
from poller.client.pacer import Pacer
from poller.client.ports import ImageSink, Observer, SignInStore, Unobserved
from poller.client.resolver import Resolver
from poller.client.transport import tls_context

__all__ = [
    "Client",
    "ImageSink",
    "Observer",
    "Pacer",
    "Resolver",
    "SignInStore",
    "Timeouts",
    "Unobserved",
    "tls_context",
]
