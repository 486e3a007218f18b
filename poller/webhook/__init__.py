"""Take eFax's notices on a listener of its own, which the internet may reach."""

from poller.webhook.listener import HookListener
from poller.webhook.tls import server_context

__all__ = ["HookListener", "server_context"]
