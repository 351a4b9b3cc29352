"""A request's path through the worker. Start reading at `journey.py`."""
