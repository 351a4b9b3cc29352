"""The contract (README.md) as code: requests, their validation, replies, records. Pure data, no I/O."""
