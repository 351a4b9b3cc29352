"""`python -m worker` is `ott-worker`."""

from worker.cli.app import main

if __name__ == "__main__":
    main()
