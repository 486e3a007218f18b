from poller.cli import entry

raise SystemExit(entry())
