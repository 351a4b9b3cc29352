"""`ott-worker dead-letters`."""
