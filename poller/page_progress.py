"""How far a page to the user's own number has got, in words."""

from poller.ledger import SendRow, SendState


def what_is_missing(row: SendRow) -> str:
    """Return the step that has not happened to such a page, and what to do."""
    sent = f"eFax has it as {row.fax_id}"
    if row.arrived_fax_id is not None:
        return (
            f"it is listed as {row.arrived_fax_id} but not stored: "
            f"`poller explain {row.arrived_fax_id}` shows why"
        )
    accepted = row.fax_id is not None
    why = {
        (SendState.FAILED, False): f"it was not sent: {row.error}",
        (SendState.FAILED, True): f"{sent} but could not transmit it: {row.error}",
        (SendState.SENDING, False): (
            "eFax has not answered yet; if the answer is lost, poller looks for the fax and never resends it"
        ),
        (SendState.IN_DOUBT, False): (
            f"eFax's answer was lost, and eFax's list of sent faxes does not show it: {row.error}"
        ),
        (SendState.TRANSMITTED, True): (
            f"{sent} and transmitted it, but it is not among the received faxes: does `number` "
            "belong to this user's user_id?"
        ),
        (SendState.ACCEPTED, True): (
            f"{sent}, and is still transmitting it ({row.status or 'eFax gives no status'}): "
            "look in eFax's portal"
        ),
    }
    return why.get(
        (row.state, accepted), "it waits to be sent: is the service running, does the account work?"
    )
