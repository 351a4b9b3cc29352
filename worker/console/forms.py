"""Parses URLs and forms: filters, and corrections of letters with their differences."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web
from multidict import MultiDict, MultiMapping

from worker.contract.platforms import ATTRIBUTES, FLAG_FIELDS, PLATFORM_NAME, PLATFORMS, SECRET_FIELDS
from worker.contract.secrets import MASK
from worker.contract.selection import Selection
from worker.contract.timestamps import moment
from worker.dead_letters.patch import flag_of
from worker.errors import UsageError

# The filters, by name in the URL.
JOURNAL_FILTERS = ("id", "resource", "platform", "account", "reason", "status")
TIMES = ("since", "until")
LETTER_FILTERS = ("reason", "platform", "resource", "account", "user", "error", "cause", "id", *TIMES)

UNCHANGED = "unchanged"
MAX_RATE = 1e6  # letters a second
WHY_LENGTH = 200

Query = MultiMapping[str]
Change = tuple[str, str, str]
"""One line of the difference, without secrets: the field, before, after."""


async def form_of(request: web.Request) -> MultiDict[str]:
    """The text fields of the form. Uploaded files are ignored."""
    typed = await request.post()
    return MultiDict((name, value) for name, value in typed.items() if isinstance(value, str))


def asked_for(query: Query, *filters: str) -> tuple[Selection, dict[str, str]]:
    """The selection of a URL or form by these filters, and the filters' texts. Raises UsageError for an
    invalid time."""
    words = {name: word for name in filters if (word := query.get(name, "").strip())}
    values: dict[str, Any] = {
        name: moment(word, name.capitalize()) if name in TIMES else frozenset({word})
        for name, word in words.items()
    }
    return Selection(**values), words


def why_of(form: Query) -> str:
    """The operator's reason. Raises UsageError if there is none."""
    why = " ".join(form.get("why", "").split())[:WHY_LENGTH]
    if not why:
        raise UsageError("Enter a reason: it is kept in the audit list.")
    return why


def rate_of(form: Query) -> float | None:
    """The most letters per second, None for no limit. Raises UsageError."""
    text = form.get("rate", "").strip()
    if not text:
        return None
    with suppress(ValueError):
        if 0 < (rate := float(text)) < MAX_RATE:
            return rate
    raise UsageError("The rate must be a number above 0: letters a second.")


def attributes_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes in the output of `view`."""
    body = document.get("body")
    attributes = body.get(ATTRIBUTES) if isinstance(body, dict) else None
    return attributes if isinstance(attributes, dict) else {}


def patch_of(form: Query, document: Mapping[str, Any] | None) -> tuple[dict[str, Any], list[Change]]:
    """The patch of the form, and its changes to the letter of which `document` is the view, or to several.
    Raises UsageError."""
    platform = PLATFORMS.get(form.get("platform", ""))
    if platform is None:
        raise UsageError("The platform is unknown.")
    values: dict[str, Any] = {}
    changes: list[Change] = []
    attributes = attributes_of(document or {})
    if document is not None and document.get(PLATFORM_NAME) != platform.name:
        values[PLATFORM_NAME] = platform.name
        changes.append((PLATFORM_NAME, text_of(document.get(PLATFORM_NAME)), platform.name))
    for name in platform.fields:
        is_secret, is_flag, before = name in SECRET_FIELDS, name in FLAG_FIELDS, attributes.get(name)
        # A browser removes line breaks from a field.
        unchanged = (UNCHANGED, "") if is_secret or is_flag else (_one_line(text_of(before)),)
        typed = _one_line(form.get(f"set.{name}", unchanged[0]))
        if typed in unchanged:
            continue
        values[name] = flag_of(name, typed) if is_flag else typed
        if is_secret:
            changes.append((name, MASK if before else "", f"{MASK} (new)"))
        else:
            changes.append((name, text_of(before), typed))
    if not changes:
        raise UsageError("Nothing was changed: enter a new value, or replay without a correction.")
    return values, changes


def _one_line(text: str) -> str:
    return text.replace("\r", "").replace("\n", "")


def text_of(value: object) -> str:
    """A value as the text of a form's field."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
