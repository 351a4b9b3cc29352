"""Logs, metrics, traces, status and health of a worker."""
