"""Which release this is."""

from importlib import metadata

PACKAGE = "ott-registration-worker"


def version() -> str:
    """The version of the installed package."""
    return metadata.version(PACKAGE)
