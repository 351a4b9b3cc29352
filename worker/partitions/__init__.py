"""Several workers at once, with the order of requests kept (contract §10)."""
