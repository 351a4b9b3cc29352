"""`check` names the true cause of what does not work, each in one line (contract §8)."""

from collections.abc import Callable
from uuid import uuid4

import aio_pika
import pytest

from tests.commands import Checked, checked_with
from tests.rig import environment, worker_status
from tests.sandbox_faults import Status
from worker.settings import Settings

Make = Callable[..., Settings]


async def check(settings: Settings, **variables: str) -> Checked:
    return await checked_with({**environment(settings), **variables})


def operator(make_settings: Make, **overrides: object) -> Settings:
    """Without Marketing Cloud."""
    return make_settings(mc_client_id=None, mc_client_secret=None, **overrides)


async def test_all_that_works_is_told_line_by_line(rig):
    await rig.start()
    checked = await check(rig.settings())
    assert checked.code == 0, checked.out
    assert checked.verdicts == [
        ["ok", "settings"],
        ["ok", "broker"],
        ["ok", "permissions"],
        ["ok", "topology"],
        ["note", "workers"],  # the library's parts alone publish no status
        ["ok", "token"],
    ]


async def test_before_the_first_start_nothing_is_wrong(rig):
    checked = await check(rig.settings())
    assert checked.code == 0, checked.out
    assert "the worker will declare it" in checked.line("topology")
    assert "NO WORKER IS RUNNING" in checked.line("workers")
    strict = await check(rig.settings(declare=False))
    assert "is missing: create it" in strict.failure("topology")


async def test_half_of_marketing_cloud_s_settings_is_a_failure_and_the_broker_is_checked_all_the_same(
    make_settings,
):
    checked = await check(make_settings(mc_client_secret=None, mc_subdomain="mc1"))
    assert checked.code == 2
    assert "OTT_MC_CLIENT_SECRET must be set" in checked.failure("settings")
    assert checked.line("broker").startswith("ok")


async def test_a_wrong_setting_is_named(make_settings):
    checked = await check(make_settings(), OTT_PREFETCH="many")
    assert (checked.code, checked.out) == (2, "FAIL  settings    OTT_PREFETCH must be a whole number\n")


async def test_a_variable_that_nothing_reads_is_named_with_the_nearest(make_settings):
    checked = await check(operator(make_settings), OTT_PREFECTH="5")
    assert checked.out.startswith("note  settings    OTT_PREFECTH is not read: ")
    assert "the nearest is OTT_PREFETCH" in checked.out.splitlines()[0]


@pytest.mark.parametrize(
    ("variable", "path"), [("OTT_MC_REST_URL", "/ott/v1/registration"), ("OTT_MC_AUTH_URL", "/v2/token")]
)
async def test_a_url_with_a_path_of_the_api_in_it_is_named(make_settings, variable, path):
    checked = await check(make_settings(), **{variable: f"https://mc1.marketingcloudapis.com{path}"})
    assert checked.code == 2
    assert f"{variable} must be the base URL, without" in checked.failure("settings")


# Marketing Cloud


# What the token endpoint answers, and what is said.
REFUSALS = {
    "wrong credentials": (
        {"status": 401, "body": '{"error": "invalid_client", "error_description": "No such client."}'},
        ["401 invalid_client: No such client", "check OTT_MC_CLIENT_ID and OTT_MC_CLIENT_SECRET"],
    ),
    "a wrong authentication URL": (
        {"status": 404},
        ["404", "check OTT_MC_AUTH_URL: the authentication URL is http://127"],
    ),
    "a method that is not allowed": (
        {"status": 405},
        ["405", "check OTT_MC_AUTH_URL: the authentication URL is http://127"],
    ),
    "an address that is not allowed": (
        {
            "status": 401,
            "body": '{"error": "unauthorized_client", "error_description": '
            '"The client IP address is unauthorized for this account. Allowlist it."}',
        },
        ["401 unauthorized_client: The client IP address is unauthorized", "to the allowlist"],
    ),
    "a package without the scope": (
        {
            "status": 200,
            "body": '{"access_token": "t", "expires_in": 1079, "scope": "ott_channels_read offline"}',
        },
        ["the token lacks the scope ott_channels_write: grant it"],
    ),
    "trouble on its side": ({"status": 503}, ["this is Marketing Cloud's failure"]),
}


@pytest.mark.parametrize("cause", REFUSALS)
async def test_the_cause_of_a_refused_token(rig, cause):
    answer, said = REFUSALS[cause]
    rig.sandbox.faults.add(Status(path="token", **answer))
    line = (await check(rig.settings())).failure("token")
    assert [words for words in said if words not in line] == [], line


async def test_a_wrong_business_unit(rig):
    body = '{"error": "invalid_request", "error_description": "The account is not valid."}'
    rig.sandbox.faults.add(Status(path="token", status=400, account="42", body=body))
    line = (await check(rig.settings(mc_account_id="42"))).failure("token")
    assert "The account is not valid: check OTT_MC_ACCOUNT_ID (42): without it a token is issued" in line


async def test_a_wrong_subdomain(rig):
    nowhere = rig.settings(mc_auth_url=None, mc_rest_url=None, mc_subdomain=f"none-{uuid4().hex[:8]}")
    line = (await check(nowhere)).failure("token")
    assert "check OTT_MC_SUBDOMAIN: the authentication URL is https://none-" in line


# The broker


async def test_an_address_where_nobody_listens(make_settings):
    checked = await check(operator(make_settings, amqp_url="amqp://guest:s3cret-one@127.0.0.1:1/"))
    assert checked.code == 3
    assert "RabbitMQ at 127.0.0.1:1 cannot be reached: connection refused" in checked.failure("broker")
    assert "s3cret-one" not in checked.out


async def test_each_of_several_addresses_is_named(make_settings, clean_broker):
    several = f"amqp://guest:guest@127.0.0.1:1/,{clean_broker}"
    checked = await check(operator(make_settings), OTT_AMQP_URL=several)
    lines = [line for line in checked.out.splitlines() if line.split()[1] == "broker"]
    assert checked.code == 3
    assert lines[0].startswith("FAIL")
    assert "127.0.0.1:1" in lines[0]
    assert "address 1 of 2 in OTT_AMQP_URL" in lines[0]
    assert lines[1].startswith("ok")
    assert "has the permissions of an operator" in checked.line("permissions")


# The workers


async def test_a_worker_that_runs(rig):
    requester = await rig.start()
    message = aio_pika.Message(worker_status().to_json())
    await requester.channel.default_exchange.publish(message, f"{requester.prefix}.status")
    assert (await check(rig.settings())).line("workers") == "ok    workers     host:7 is active"
