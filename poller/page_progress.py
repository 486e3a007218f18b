"""How far a page that was sent to our own number has come, in words."""

from poller.ledger import SendRow, SendState


def what_is_missing(row: SendRow) -> str:
    """Say what has not happened of a page to our own number, and what to do."""
    sent = f"eFax has it as {row.fax_id}"
    if row.arrived_fax_id is not None:
        return (
            f"it is listed as {row.arrived_fax_id} and not stored: "
            f"`poller explain {row.arrived_fax_id}` says why"
        )
    accepted = row.fax_id is not None
    why = {
        (SendState.FAILED, False): f"it was not sent: {row.error}",
        (SendState.FAILED, True): f"{sent} and could not transmit it: {row.error}",
        (SendState.SENDING, False): (
            "eFax has not answered yet; if the answer is lost, the fax is looked for and not sent again"
        ),
        (SendState.IN_DOUBT, False): (
            f"eFax's answer was lost, and it is not among the sent ones: {row.error}"
        ),
        (SendState.TRANSMITTED, True): (
            f"{sent} and transmitted it, and it is not among the received ones: does `number` "
            "belong to this user's user_id?"
        ),
        (SendState.ACCEPTED, True): (
            f"{sent}, and its transmission is not over ({row.status or 'eFax tells no status'}): "
            "look in eFax's portal"
        ),
    }
    return why.get(
        (row.state, accepted), "it waits to be sent: does the service run, is the account well?"
    )
