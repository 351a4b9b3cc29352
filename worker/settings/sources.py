"""The sources of settings: the environment, then a `.env` file; and for each variable the file that
`VARIABLE_FILE` names (contract §7)."""

import os
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from worker.errors import SettingsError

PREFIX = "OTT_"
ENV_FILE = ".env"
# Security settings. An empty one is an error: it would turn protection off unnoticed.
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
    """The process's environment, which overrides `.env`. Raises SettingsError if `.env` cannot be read."""
    try:
        from_file = dotenv_values(ENV_FILE) if Path(ENV_FILE).is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{ENV_FILE} must be a readable file: {why}") from None
    # VARIABLE_FILE in the environment overrides VARIABLE in `.env`, and vice versa.
    below = {k: v for k, v in from_file.items() if v is not None and not _is_set(k, os.environ)}
    return below | dict(os.environ)


def read_file(path: str, name: str) -> str:
    """The text of a variable's file, without a byte order mark and final line ends. Raises SettingsError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{name}_FILE must be a readable file: {why}") from None
    if name in NEVER_EMPTY and is_blank(text):
        raise SettingsError(f"{name}_FILE must be a file with a value: it is empty")
    return text


def is_blank(text: str) -> bool:
    """Whether a text consists of white space and commas."""
    return not text.strip(" \t\r\n\f\v,\ufeff")


def _is_set(name: str, variables: Mapping[str, str]) -> bool:
    other = name.removesuffix("_FILE") if name.endswith("_FILE") else f"{name}_FILE"
    return name in variables or bool(variables.get(other))


def read_value(variables: Mapping[str, str], field: str) -> str | None:
    """The value of a field in its variable or file. An empty one counts as not set."""
    name = variable(field)
    value = variables.get(name)
    path = "" if name.endswith("_FILE") else variables.get(f"{name}_FILE", "")
    if path and value:
        raise SettingsError(f"{name} and {name}_FILE must not both be set: keep one of them")
    if path:
        return read_file(path, name)
    if name in NEVER_EMPTY and (f"{name}_FILE" in variables or is_blank("x" if value is None else value)):
        raise SettingsError(f"{name} must not be empty: set a value, or remove the variable")
    if value == "" and name != "OTT_ADMIN_PORT":
        return None
    return value
