"""`ott-worker submit`: the command and its output."""
