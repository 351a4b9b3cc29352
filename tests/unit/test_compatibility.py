"""Versions and policies that break the contract's promises (contract §1)."""

import pytest

from worker.broker.requirements import policy_warnings, version_warnings


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3.10.8", ["trusted"]),
        ("3.12.1", ["tested", "trusted"]),
        ("3.13.7", ["tested"]),
        ("4.0.5", []),
        ("4.2.0", ["tested"]),
        ("4.3.6", []),
        ("4.4.0-rc.1", ["tested"]),
        ("unknown", []),
    ],
)
def test_a_version_is_warned_of_where_it_breaks_a_promise(version, words):
    warnings = version_warnings(version)
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({}, []),
        ({"max-length": 5, "consumer-timeout": 1_800_000, "delayed-retry-type": "disabled"}, []),
        ({"consumer-timeout": 5000}, ["5 s, below OTT_HOLD_LIMIT (600 s)"]),
        ({"delayed-retry-type": "all", "consumer-timeout": 1}, ["delayed-retry-type", "consumer-timeout"]),
        ({"single-active-consumer": False}, ["workers overtake each other"]),
    ],
)
def test_a_policy_is_warned_of_where_it_breaks_a_promise(policy, words):
    warnings = policy_warnings("ott.requests", {"single-active-consumer": True, **policy}, 600.0)
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))
