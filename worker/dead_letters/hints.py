"""One sentence of advice for each reason that a letter died of."""

_HINTS = {
    "invalid": "The sender must correct them: the error names the field. Or correct and replay them here.",
    "rejected": "Marketing Cloud turned them down: the error says why. Correct and replay them.",
    "exhausted": "Their calls failed while others succeeded: replay one, then the rest.",
    "forbidden": "Grant the scope or the business unit in Marketing Cloud, then replay them.",
    "oversize": "They are larger than OTT_MAX_BODY_BYTES: the sender must send less. Discard them.",
    "delivery_limit": "They ended the worker again and again: look at its log before you replay one.",
    "expired": "They lay unread for too long: the sender must send them again.",
    "maxlen": "The queue was full: the sender must send them again.",
}


def hint(reason: str) -> str:
    """The advice for letters with this reason."""
    return _HINTS.get(reason, "Look at one of them: ott-worker dead-letters show ID.")
