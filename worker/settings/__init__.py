"""The settings of one process (contract §7)."""

from worker.settings.model import PREFIX, Settings, environment, load_settings, parse_keys, variable

__all__ = ["PREFIX", "Settings", "environment", "load_settings", "parse_keys", "variable"]
