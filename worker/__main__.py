"""`python -m worker` is `ott-worker`."""

import os
import sys

from worker.errors import Interrupted


def main() -> None:
    """Run a command. Exit codes as in contract §8."""
    # Without this, pydantic searches all installed packages for plugins, which slows down the start.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        # The import is slow. Inside the `try`, Ctrl-C ends it with the right exit code.
        from worker.cli.app import main as run  # noqa: PLC0415
    except KeyboardInterrupt:
        sys.exit(Interrupted.exit_code)
    run()


if __name__ == "__main__":
    main()
