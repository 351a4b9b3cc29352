"""Which worker is to have which partition (contract §10)."""

from statistics import mean

import pytest

from worker.broker.permissions import workers_rights
from worker.contract.settlement import Resource
from worker.partitions import worker as members
from worker.partitions.router import partition_of
from worker.partitions.worker import Members, weight
from worker.settings import load_settings

PARTITIONS = range(1, 65)


def owners(workers: list[str]) -> dict[int, str]:
    return {partition: max(workers, key=lambda worker: weight(worker, partition)) for partition in PARTITIONS}


def test_a_worker_that_joins_takes_only_what_it_wins_and_nothing_moves_between_the_others() -> None:
    before, after = owners(["a", "b", "c"]), owners(["a", "b", "c", "d"])
    moved = {partition for partition in PARTITIONS if before[partition] != after[partition]}
    assert moved == {partition for partition in PARTITIONS if after[partition] == "d"}
    assert 0 < len(moved) < len(PARTITIONS) / 2


def record(worker: str, version: str = "1.2.0", state: str = "standby") -> dict[str, str]:
    return {"worker": worker, "version": version, "state": state}


def test_the_workers_that_are_heard_of_agree_on_the_owners() -> None:
    names = ["a", "b", "c"]
    workers = [Members(name, "status") for name in names]
    for each in workers:
        for name in names:
            each.hear(record(name))
    for partition in PARTITIONS:
        assert {each.owner(partition)[0] for each in workers} == {owners(names)[partition]}


@pytest.mark.parametrize("state", ["draining", "stopped"])
def test_a_worker_that_leaves_owns_nothing_at_once(state: str) -> None:
    workers = Members("a", "status")
    workers.hear(record("b"))
    assert {workers.owner(partition)[0] for partition in PARTITIONS} == {"a", "b"}
    workers.hear(record("b", state=state))
    assert {workers.owner(partition)[0] for partition in PARTITIONS} == {"a"}


def test_a_worker_that_is_silent_owns_nothing_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Members("a", "status")
    workers.hear(record("b"))
    monkeypatch.setattr(members, "SILENT_AFTER", -1.0)
    assert {workers.owner(partition)[0] for partition in PARTITIONS} == {"a"}


def test_consumers_of_earlier_releases_have_priorities() -> None:
    workers = Members("a", "status")
    workers.hear(record("b"))
    assert not workers.have_priorities
    workers.hear(record("c", version="1.1.0"))
    assert workers.have_priorities


def test_resources_spread_evenly_over_the_partitions() -> None:
    counts = dict.fromkeys(range(1, 9), 0)
    for number in range(8000):
        counts[partition_of(Resource(None, "messenger", str(number)), 8)] += 1
    assert max(counts.values()) / mean(counts.values()) < 1.1


def test_account_platform_and_id_all_choose_the_partition_and_do_not_run_into_each_other() -> None:
    resources = [
        Resource(None, "line", "1"),
        Resource("1", "line", ""),
        Resource(None, "line1", ""),
        Resource(None, "messenger", "1"),
        Resource("1", "line", "1"),
    ]
    assert len({partition_of(resource, 10**9) for resource in resources}) == len(resources)


@pytest.mark.parametrize(
    ("partitions", "names"),
    [(1, set()), (2, {"ott.partitions", "ott.requests.1", "ott.requests.2"})],
)
def test_a_worker_reads_and_declares_its_partitions(partitions: int, names: set[str]) -> None:
    rights = workers_rights(load_settings(prefix="ott", partitions=partitions))
    for verb in ("read", "configure"):
        of_verb = {right.name for right in rights if right.verb == verb}
        assert {name for name in of_verb if "partitions" in name or name[-1].isdigit()} == names
