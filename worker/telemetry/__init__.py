"""Event listeners: they turn the worker's events into logs, metrics, traces and health."""
