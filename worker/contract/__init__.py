"""The contract (README.md) as code: requests, their validation, replies and records. No network I/O."""
