"""Which worker a partition prefers (contract §10): the one whose rendezvous weight for it is the highest.

No worker needs to know of the others. A worker that comes or goes moves only the partitions that it wins or
had, since the order of the others stays as it is.
"""

from hashlib import blake2b

HIGHEST_WEIGHT = 2**16


def weight(worker: str, partition: int) -> int:
    """From 1, so that a consumer without a priority comes after all workers, to HIGHEST_WEIGHT."""
    digest = blake2b(f"{worker} {partition}".encode(), digest_size=8, person=b"ott-rendezvous").digest()
    return 1 + int.from_bytes(digest) % HIGHEST_WEIGHT


def delay(worker: str, partition: int, longest: float) -> float:
    """Seconds to wait before subscribing where RabbitMQ knows no priorities: the first one that subscribes
    has the partition. The higher the weight, the shorter."""
    return longest * (1 - weight(worker, partition) / HIGHEST_WEIGHT)
