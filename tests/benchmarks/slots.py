"""Run the worker and note where the time of its deliveries goes: `slots.py FILE`.

When the worker ends, FILE gets the mean seconds that a delivery was held, that its call took, and that its
settling took, up to the acknowledgement. Nothing of it is in the product: three functions are wrapped from
outside.
"""

import atexit
import functools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from worker.__main__ import main
from worker.amqp.consumer import Subscription
from worker.marketing_cloud.client import MarketingCloud
from worker.pipeline.settle import Settler

WARM = 600  # requests that are not counted

spent: Counter[str] = Counter()


def watch_calls() -> None:
    original = MarketingCloud.register

    @functools.wraps(original)
    async def register(*args: Any) -> Any:
        began = time.monotonic()
        try:
            return await original(*args)
        finally:
            if spent["settled"] >= WARM:
                spent["calls"] += 1
                spent["in the call"] += time.monotonic() - began

    MarketingCloud.register = register  # type: ignore[method-assign]


def watch_settling() -> None:
    original = Settler.settle

    @functools.wraps(original)
    async def settle(self: Settler, request: Any, outcome: Any) -> Any:
        began = time.monotonic()
        settlement = await original(self, request, outcome)
        if spent["settled"] >= WARM:
            spent["settlings"] += 1
            spent["settling"] += time.monotonic() - began
        return settlement

    Settler.settle = settle  # type: ignore[method-assign]


def watch_acknowledgements() -> None:
    original = Subscription.ack

    @functools.wraps(original)
    def ack(self: Subscription, delivery: Any) -> None:
        spent["settled"] += 1
        if spent["settled"] > WARM:
            spent["deliveries"] += 1
            spent["held"] += time.monotonic() - delivery.arrived_at
        original(self, delivery)

    Subscription.ack = ack  # type: ignore[method-assign]


def report(file: Path) -> None:
    call = spent["in the call"] / spent["calls"]
    settling = spent["settling"] / spent["settlings"]
    held = spent["held"] / spent["deliveries"]
    file.write_text(json.dumps({"held": held, "call": call, "settling": settling}))


if __name__ == "__main__":
    watch_calls()
    watch_settling()
    watch_acknowledgements()
    atexit.register(report, Path(sys.argv[1]))
    sys.argv = ["ott-worker", "run"]
    main()
