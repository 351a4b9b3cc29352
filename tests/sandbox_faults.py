"""The sandbox's faults by their kinds."""

from functools import partial

from worker.sandbox.faults import Fault

Latency = partial(Fault, kind="latency")
Status = partial(Fault, kind="status")
Hang = partial(Fault, kind="hang")
Reset = partial(Fault, kind="reset")
Half = partial(Fault, kind="half")
ShortToken = partial(Fault, kind="short_token")
