"""The sources of values: the environment, a `.env` file below it, and for each variable the file that
`VARIABLE_FILE` names (contract §7)."""

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from worker.errors import SettingsError

PREFIX = "OTT_"
ENV_FILE = ".env"
# Security settings. One that is given and holds nothing is an error: without it less would be protected.
NEVER_EMPTY = frozenset(
    {
        "OTT_AMQP_CA_FILE",
        "OTT_CONSOLE_PASSWORD",
        "OTT_DEAD_LETTER_KEYS",
        "OTT_MC_CA_FILE",
        "OTT_MC_CLIENT_SECRET",
    }
)


def variable(field: str) -> str:
    """The environment variable of a field."""
    return PREFIX + field.upper()


def environment() -> dict[str, str]:
    """The process's environment, over `.env`. Raises SettingsError where `.env` cannot be read."""
    try:
        from_file = dotenv_values(ENV_FILE) if Path(ENV_FILE).is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{ENV_FILE} must be a file that can be read: {why}") from None
    # `.env` may say VARIABLE and the environment VARIABLE_FILE, or the other way round: the environment wins.
    below = {k: v for k, v in from_file.items() if v is not None and not _is_named(k, os.environ)}
    return below | dict(os.environ)


def read_file(path: str, name: str) -> str:
    """The text of a variable's file, without a byte order mark and the line end. Raises SettingsError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{name}_FILE must be a file that can be read: {why}") from None
    if name in NEVER_EMPTY and is_blank(text):
        raise SettingsError(f"{name}_FILE must be a file that holds a value: it is empty")
    return text


def is_blank(text: str) -> bool:
    """Whether there is nothing but blanks and commas."""
    return not text.strip(" \t\r\n\f\v,\ufeff")


def _is_named(name: str, given: Mapping[str, str]) -> bool:
    other = name.removesuffix("_FILE") if name.endswith("_FILE") else f"{name}_FILE"
    return name in given or bool(given.get(other))


def read_value(given: Mapping[str, str], field: str) -> str | None:
    """The value of a field as it is given, in a variable or its file. An empty one counts as not given."""
    name = variable(field)
    value = given.get(name)
    path = "" if name.endswith("_FILE") else given.get(f"{name}_FILE", "")
    if path and value:
        raise SettingsError(f"{name} and {name}_FILE must not both be set: keep one of them")
    if path:
        return read_file(path, name)
    if name in NEVER_EMPTY and (f"{name}_FILE" in given or is_blank("x" if value is None else value)):
        raise SettingsError(f"{name} must not be empty where it is given: set a value, or leave it out")
    if value == "" and name != "OTT_ADMIN_PORT":
        return None
    return value
