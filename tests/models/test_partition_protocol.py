"""The partition protocol keeps its promises whatever happens, and each of its protections is needed."""

import pytest

from tests.models.partition_protocol import Scenario, search, wander

MOVED = (0, 1)  # the next router has another number of partitions
LARGE = Scenario(
    requests=4, homes=(0, 1, 0, 1), router_takeovers=3, worker_takeovers=3, refusals=2, renewals=2
)

VIOLATIONS = {
    "confirm": "lost",
    "in order": "an older one is the last",
    "one channel": "an older one is the last",
    "whole run again": "an older one is the last",
    "renewed epoch": "an older one is the last",
    "verified claim": "lost",
    "barrier": "an older one is the last",
    "fence": "an older one is the last",
    "memory": "an older one is the last",
    "arrival times": "an older one has the later time",
    "lease": "an older one is the last",
}


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(homes=MOVED),
        Scenario(homes=MOVED, worker_takeovers=0, refusals=1),
        Scenario(router_takeovers=0, renewals=1),
    ],
    ids=[
        "the number of partitions changes, a router and a worker",
        "a partition is full",
        "the epoch is renewed",
    ],
)
def test_whatever_happens_nothing_is_lost_and_the_latest_wins(scenario):
    result = search(scenario)
    assert result.violations == {}
    assert result.states > 10_000
    assert result.ends > 0


def test_take_over_after_take_over_nothing_is_lost_and_the_latest_wins():
    result = wander(LARGE, walks=500, seed=1)
    assert result.violations == {}
    assert result.ends == 500


@pytest.mark.parametrize("protection", VIOLATIONS)
def test_without_one_of_its_protections_the_protocol_breaks(protection):
    scenario = Scenario(
        homes=MOVED,
        worker_takeovers=protection not in {"barrier", "one channel", "whole run again", "renewed epoch"},
        refusals=protection == "whole run again",
        renewals=protection == "renewed epoch",
        without=protection,
    )
    wanted = VIOLATIONS[protection]
    assert wanted in search(scenario, until=wanted).violations
