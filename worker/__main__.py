"""`python -m worker` is `ott-worker`."""

import os
import sys

from worker.errors import Interrupted


def main() -> None:
    """Run a command. Exit codes as in contract §8."""
    # Else the first model searches all installed packages for plugins of pydantic, which takes a moment.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        # Late, for it takes a moment in which Ctrl-C is heard already.
        from worker.cli.app import main as run  # noqa: PLC0415
    except KeyboardInterrupt:
        sys.exit(Interrupted.exit_code)
    run()


if __name__ == "__main__":
    main()
