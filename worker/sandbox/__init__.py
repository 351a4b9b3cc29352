"""A local Marketing Cloud: the token and OTT registration endpoints, with faults on request."""

from worker.sandbox.server import Sandbox

__all__ = ["Sandbox"]
