"""The form that corrects letters: its fields, what was typed, and the difference that makes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.contract.platforms import ATTRIBUTES, PLATFORM_NAME, Platform
from worker.contract.secrets import MASK
from worker.dead_letters.patch import Patch, flag_of
from worker.errors import UsageError

UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form. `shown` is the value as it is shown, empty for a secret; `is_there` whether the
    letter has it, None where the form is for several; `is_named` whether the error names it."""

    name: str
    shown: str
    is_secret: bool
    is_flag: bool
    is_there: bool | None
    is_named: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the difference, as texts that may be shown."""

    name: str
    before: str
    after: str


def fields_of(
    document: Mapping[str, Any] | None, platform: Platform, named: frozenset[str] = frozenset()
) -> list[Field]:
    """The form for a letter as `view` shows it, or for several."""
    body = (document or {}).get("body")
    attributes = body.get(ATTRIBUTES) if isinstance(body, dict) else None
    attributes = attributes if isinstance(attributes, dict) else {}
    return [
        Field(
            name,
            "" if name in platform.secrets else _text(attributes.get(name)),
            name in platform.secrets,
            name in platform.flags,
            None if document is None else attributes.get(name) not in (None, ""),
            name in named,
        )
        for name in platform.fields
    ]


def patch_of(
    form: Mapping[str, str], document: Mapping[str, Any] | None, platform: Platform
) -> tuple[Patch, list[Change]]:
    """The patch that the form describes, and its changes to the letter or to several. Raises UsageError."""
    values: dict[str, Any] = {}
    changes: list[Change] = []
    if document is not None and document.get("ottPlatformName") != platform.name:
        values[PLATFORM_NAME] = platform.name
        changes.append(Change(PLATFORM_NAME, str(document.get("ottPlatformName") or ""), platform.name))
    for field in fields_of(document, platform):
        unchanged = (UNCHANGED, "") if field.is_secret or field.is_flag else (field.shown,)
        typed = form.get(f"set.{field.name}", unchanged[0]).strip("\r\n")
        if typed in unchanged:
            continue
        values[field.name] = flag_of(field.name, typed) if field.is_flag else typed
        before = MASK if field.is_secret and field.is_there else field.shown
        changes.append(Change(field.name, before, f"{MASK} (new)" if field.is_secret else typed))
    if not changes:
        raise UsageError("Nothing was changed: type a new value, or replay as it is.")
    return Patch(values), changes


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
