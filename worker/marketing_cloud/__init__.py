"""Marketing Cloud: the only package of the worker that imports the HTTP client."""
