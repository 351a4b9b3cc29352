"""The settings of one process (contract §7)."""

from worker.settings.checks import parse_keys, split_urls
from worker.settings.model import Settings, load_settings, unknown_variables
from worker.settings.sources import PREFIX, environment, variable

__all__ = [
    "PREFIX",
    "Settings",
    "environment",
    "load_settings",
    "parse_keys",
    "split_urls",
    "unknown_variables",
    "variable",
]
