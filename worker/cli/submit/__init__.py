"""`ott-worker submit`: the command, and what it shows."""
