"""What `check` asks of a worker's user where the requests are divided (contract §10)."""

import pytest

from worker.broker.permissions import workers_rights
from worker.settings import load_settings


@pytest.mark.parametrize(
    ("partitions", "names"),
    [(1, set()), (2, {"ott.partitions", "ott.requests.1", "ott.requests.2"})],
)
def test_a_worker_reads_and_declares_its_partitions(partitions: int, names: set[str]) -> None:
    rights = workers_rights(load_settings(prefix="ott", partitions=partitions))
    for verb in ("read", "configure"):
        of_verb = {right.name for right in rights if right.verb == verb}
        assert {name for name in of_verb if "partitions" in name or name[-1].isdigit()} == names
