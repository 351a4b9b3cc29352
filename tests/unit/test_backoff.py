"""The back-off: exponential, with full jitter, and never above its longest wait."""

from hypothesis import given
from hypothesis import strategies as st

from worker.backoff import Backoff
from worker.pipeline import flow, policy


def test_the_ceiling_doubles_with_each_failure_up_to_the_longest_wait() -> None:
    assert [Backoff(0.5, 30).ceiling(failures) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@given(failures=st.integers(0, 10**6), first=st.floats(0.001, 1000), longest=st.floats(0.001, 1000))
def test_a_wait_lies_between_nothing_and_the_ceiling(failures: int, first: float, longest: float) -> None:
    assert (
        0 <= Backoff(first, longest).draw(failures) <= min(longest, Backoff(first, longest).ceiling(failures))
    )


def test_waits_spread_over_the_whole_time_so_that_many_do_not_come_back_at_once() -> None:
    waits = [Backoff(1, 30).draw(3) for _ in range(100)]
    assert min(waits) < 1 < 3 < max(waits)


def test_the_longest_waits_are_the_contract_s() -> None:
    assert (policy.LONGEST_BACKOFF, flow.LONGEST_PROBE_WAIT) == (60, 30)
