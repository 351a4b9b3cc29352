"""The command line is tried on one broker; what differs between brokers is tested below it."""

import pytest

from tests.conftest import BROKER_URLS


@pytest.fixture
def broker_url() -> str:
    """The first broker that `OTT_TEST_AMQP_URLS` names."""
    return BROKER_URLS[0]
