"""Which worker a partition prefers (contract §10)."""

from statistics import mean

from worker.contract.resource import Resource
from worker.pipeline.rendezvous import HIGHEST_WEIGHT, delay, weight
from worker.pipeline.router import partition_of

PARTITIONS = range(1, 65)


def owners(workers: list[str]) -> dict[int, str]:
    return {partition: max(workers, key=lambda worker: weight(worker, partition)) for partition in PARTITIONS}


def test_a_worker_that_joins_takes_only_what_it_wins_and_nothing_moves_between_the_others() -> None:
    before, after = owners(["a", "b", "c"]), owners(["a", "b", "c", "d"])
    moved = {partition for partition in PARTITIONS if before[partition] != after[partition]}
    assert moved == {partition for partition in PARTITIONS if after[partition] == "d"}
    assert 0 < len(moved) < len(PARTITIONS) / 2


def test_a_worker_that_leaves_moves_only_its_own() -> None:
    before, after = owners(["a", "b", "c"]), owners(["a", "b"])
    assert {p for p in PARTITIONS if before[p] != after[p]} == {p for p in PARTITIONS if before[p] == "c"}


def test_every_weight_is_above_that_of_a_consumer_without_a_priority() -> None:
    weights = [weight(f"worker {number}", partition) for number in range(100) for partition in PARTITIONS]
    assert 1 <= min(weights) <= max(weights) <= HIGHEST_WEIGHT


def test_the_higher_the_weight_the_shorter_the_delay() -> None:
    partitions = sorted(PARTITIONS, key=lambda partition: weight("a", partition))
    delays = [delay("a", partition, 1.0) for partition in partitions]
    assert delays == sorted(delays, reverse=True)
    assert 0 <= delays[-1] <= delays[0] < 1


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


def test_an_id_that_is_no_unicode_has_a_partition_too() -> None:
    assert 1 <= partition_of(Resource(None, "line", "\ud800"), 4) <= 4
