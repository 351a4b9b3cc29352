"""The types of the Python client hold what the contract's platforms do."""

from typing import NotRequired, get_args, get_origin, get_type_hints

import pytest

from worker.client import LineRegistration, MessengerRegistration
from worker.contract.platforms import PLATFORMS

TYPES = {"messenger": MessengerRegistration, "line": LineRegistration}


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platforms_attributes_are_typed(name: str) -> None:
    hints = get_type_hints(TYPES[name])
    assert get_args(hints["ottPlatformName"]) == (name,)
    attributes = hints["ottPlatformAttributes"]
    required = {info.alias: info.is_required() for info in PLATFORMS[name].attributes.model_fields.values()}
    typed = {
        field: get_origin(hint) is not NotRequired
        for field, hint in get_type_hints(attributes, include_extras=True).items()
    }
    assert typed == required
