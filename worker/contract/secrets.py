"""The secrets that a request carries (contract §4: no reply ever carries one)."""

import json

from worker.contract.registration import SECRET_FIELDS


def secrets_in(body: bytes) -> list[str]:
    """The values of a body's secret fields: what no text that leaves the worker may hold."""
    try:
        attributes = json.loads(body)["ottPlatformAttributes"]
        return [v for k, v in attributes.items() if k in SECRET_FIELDS and isinstance(v, str) and v]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
