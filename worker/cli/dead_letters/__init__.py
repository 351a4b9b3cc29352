"""`ott-worker dead-letters`, one file a subcommand."""
