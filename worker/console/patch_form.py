"""The form that patches one letter: its fields, what was typed, and the difference that makes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.contract.platforms import Platform
from worker.contract.secrets import MASK
from worker.dead_letters.patch import PLATFORM_NAME, Patch
from worker.errors import UsageError

FLAGS: Mapping[str, bool | int] = {"true": True, "false": False, "1": 1, "0": 0}
ATTRIBUTES = "ottPlatformAttributes"
UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form. `shown` is the value as it is shown, empty for a secret; `is_there` whether the
    letter has it."""

    name: str
    shown: str
    is_secret: bool
    is_flag: bool
    is_there: bool


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the difference, as texts that may be shown."""

    name: str
    before: str
    after: str


def fields_of(document: Mapping[str, Any], platform: Platform) -> list[Field]:
    """The form for a letter as `view` shows it."""
    body = document.get("body")
    attributes = body.get(ATTRIBUTES) if isinstance(body, dict) else None
    attributes = attributes if isinstance(attributes, dict) else {}
    return [
        Field(
            name,
            "" if name in platform.secrets else _text(attributes.get(name)),
            name in platform.secrets,
            name in platform.flags,
            attributes.get(name) not in (None, ""),
        )
        for name in platform.fields
    ]


def patch_of(
    form: Mapping[str, str], document: Mapping[str, Any], platform: Platform
) -> tuple[Patch, list[Change]]:
    """The patch that the form describes, and its changes to the letter. Raises UsageError."""
    values: dict[str, Any] = {}
    changes: list[Change] = []
    if document.get("ottPlatformName") != platform.name:
        values[PLATFORM_NAME] = platform.name
        changes.append(Change(PLATFORM_NAME, str(document.get("ottPlatformName") or ""), platform.name))
    for field in fields_of(document, platform):
        unchanged = (UNCHANGED, "") if field.is_secret or field.is_flag else (field.shown,)
        typed = form.get(f"set.{field.name}", unchanged[0]).strip("\r\n")
        if typed in unchanged:
            continue
        values[field.name] = _flag(field.name, typed) if field.is_flag else typed
        before = MASK if field.is_secret and field.is_there else field.shown
        changes.append(Change(field.name, before, f"{MASK} (new)" if field.is_secret else typed))
    return Patch(values), changes


def _flag(name: str, typed: str) -> bool | int:
    if typed not in FLAGS:
        raise UsageError(f"{name} must be true, false, 0 or 1")
    return FLAGS[typed]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
