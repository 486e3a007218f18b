"""Take eFax's notices on a separate listener, which may be open to the internet."""

from poller.webhook.listener import HookListener
from poller.webhook.tls import server_context

__all__ = ["HookListener", "server_context"]
