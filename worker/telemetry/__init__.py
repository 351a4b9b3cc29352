"""EventListeners: what the worker states, made visible as logs, metrics and health."""
