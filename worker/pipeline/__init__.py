"""A request's way through the worker. Begin with `journey.py`."""
