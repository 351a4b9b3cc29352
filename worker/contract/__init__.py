"""What travels: the registration request, its validation, and the replies. Pure; no I/O."""
