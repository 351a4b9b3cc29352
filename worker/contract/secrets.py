"""The secrets that a request carries (contract §4: no reply ever carries one)."""

import html
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from worker.contract.registration import SECRET_FIELDS

MASK = "***"
SHORT = 6  # characters; what is shorter may be a part of any word


def secrets_in(body: bytes) -> list[str]:
    """The values of a body's secret fields: what no text that leaves the worker may hold."""
    try:
        attributes = json.loads(body)["ottPlatformAttributes"]
        return [v for k, v in attributes.items() if k in SECRET_FIELDS and isinstance(v, str) and v]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def forms_of(secret: str) -> list[str]:
    """A secret as it may be quoted: as it is, in JSON, in a URL, in HTML; the longest first."""
    in_json = [json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)]
    slashed = [form.replace("/", "\\/") for form in in_json]
    text = secret.encode(errors="replace").decode()  # a URL holds no lone surrogate
    return sorted(
        {
            secret,
            *in_json,
            *slashed,
            quote(text),
            quote(text, safe=""),
            quote_plus(text),
            html.escape(secret),
        },
        key=len,
        reverse=True,
    )


def mask(text: str, forms: Iterable[str]) -> str:
    """The text without any of these; a short one counts only where it stands alone."""
    for form in forms:
        if len(form) >= SHORT:
            text = text.replace(form, MASK)
        elif form in text:
            text = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", lambda _: MASK, text)
    return text
