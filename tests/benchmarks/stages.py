"""Which stage of a request's way a sampled stack belongs to."""

from collections import Counter
from collections.abc import Iterable

Stack = tuple[str, ...]

# The first row whose words stand in the stack, innermost frame first, has it.
_STAGES = (
    ("start of the program", ("importlib",)),
    ("parse_registration", ("receive (worker/pipeline/request.py", "worker/contract/registration.py")),
    ("call: connection, request, answer", ("worker/marketing_cloud/http.py", "aiohttp/")),
    ("call: token, policy, gate, retries", ("worker/marketing_cloud/", "pipeline/forward.py")),
    ("publish: frames and confirms", ("worker/amqp/publisher.py", "worker/amqp/confirm_channel.py")),
    ("journal", ("worker/broker/journal.py",)),
    ("settle: reply, record", ("pipeline/settle.py", "worker/contract/reply.py")),
    ("metrics and log", ("worker/telemetry/",)),
    ("acknowledge", ("Subscription._flush", "Subscription.ack")),
    (
        "take: frames, properties",
        ("worker/amqp/", "worker/broker/", "aiormq/", "asyncio/streams.py", "pamqp/"),
    ),
    ("order: lanes, tasks, journey", ("worker/pipeline/",)),
)
LOOP = "event loop, sockets, kernel"


def read(text: str) -> Counter[Stack]:
    """Stacks of the main thread and their samples, from py-spy's raw format."""
    stacks: Counter[Stack] = Counter()
    for line in text.splitlines():
        frames, _, samples = line.rpartition(" ")
        stack = tuple(frames.split(";"))
        if "(threading.py" not in frames:
            stacks[stack] += int(samples)
    return stacks


def shares(stacks: Counter[Stack]) -> dict[str, float]:
    """Share of each stage, the largest first."""
    total = sum(stacks.values())
    found: Counter[str] = Counter()
    for stack, samples in stacks.items():
        found[stage(reversed(stack))] += samples
    return {name: samples / total for name, samples in found.most_common()}


def stage(frames: Iterable[str]) -> str:
    for frame in frames:
        for name, words in _STAGES:
            if any(word in frame for word in words):
                return name
    return LOOP
