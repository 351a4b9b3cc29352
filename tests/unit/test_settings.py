"""Settings: what is wrong is told in one line that names the variable, and no secret (contract §7)."""

from pathlib import Path

import pytest
import trustme

from worker.errors import SettingsError
from worker.settings import load_settings, split_urls, unknown_variables

WRONG = [
    ("OTT_AMQP_URL", "amqs://user:s3cret@host", "must be an amqp:// or amqps:// URL"),
    (
        "OTT_AMQP_URL",
        "amqp://user:s3cret@host:port/",
        "must be a valid URL: check its host and port",
    ),
    (
        "OTT_MC_REST_URL",
        "https://example.com:99999",
        "must be a valid URL: check its host and port",
    ),
    ("OTT_AMQP_URL", "amqp://user:s3cret@a,b", "must be a valid URL: check its host and port"),
    (
        "OTT_AMQP_URL",
        "amqp://a,amqp://user:s3cret@b:x/",
        "must be a valid URL: check its host and port",
    ),
    ("OTT_PARTITIONS", "65", "must be less than or equal to 64"),
    ("OTT_PREFIX", "a b", "must be letters, digits and . _ : - only, 122 at most"),
    ("OTT_PREFIX", "amq.x", "must be letters, digits and . _ : - only, 122 at most, not beginning with amq."),
    ("OTT_DECLARE", "perhaps", "must be true or false"),
    ("OTT_PREFETCH", "many", "must be a whole number"),
    ("OTT_RATE_LIMIT", "0", "must be greater than 0"),
    ("OTT_HTTP_TIMEOUT", "soon", "must be a number"),
    ("OTT_RETRY_BASE", "nan", "must be a finite number"),
    ("OTT_HOLD_LIMIT", "1800", "must be less than or equal to 1500"),
    ("OTT_JOURNAL_MAX_AGE", "a month", "must be a number and one of Y M D h m s, such as 30D"),
    ("OTT_JOURNAL_MAX_BYTES", "9" * 20, "must be less than or equal to"),
    ("OTT_ADMIN_PORT", "70000", "must be less than or equal to 65535"),
    ("OTT_LOG_FORMAT", "xml", "must be 'json' or 'console'"),
    ("OTT_MC_SUBDOMAIN", "https://mc123", "must be the subdomain alone"),
    ("OTT_MC_AUTH_URL", "http://example.com", "must be an https:// URL"),
    (
        "OTT_MC_AUTH_URL",
        "https://exa\u200bmple.com",
        "must be a valid URL: check its host and port",
    ),
    (
        "OTT_MC_REST_URL",
        "https://xn--zzzzzz99999.com",
        "must be a valid URL: check its host and port",
    ),
    ("OTT_MC_REST_URL", "https://127.1", "must be a valid URL: check its host and port"),
    ("OTT_MC_REST_URL", "https://user:s3cret@example.com", "must be a plain URL"),
    ("OTT_MC_REST_URL", "https://user:s3cret@[example.com", "must be a valid URL"),
    ("OTT_AMQP_URL", "amqp://user:s3cret@example\uff20.com", "must be a valid URL"),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG)
def test_a_wrong_value_is_told_in_one_line(monkeypatch, name, value, text):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert str(error.value).startswith(f"{name} {text}")
    assert "\n" not in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_file_stands_in_for_any_variable(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("from a file\n")
    (tmp_path / "prefetch").write_text("7")
    monkeypatch.setenv("OTT_MC_CLIENT_SECRET_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("OTT_PREFETCH_FILE", str(tmp_path / "prefetch"))
    settings = load_settings()
    assert settings.mc_client_secret is not None
    assert settings.mc_client_secret.get_secret_value() == "from a file"
    assert settings.prefetch == 7
    (tmp_path / "secret").write_text("rotated")
    assert settings.now("mc_client_secret") == "rotated"
    (tmp_path / "secret").unlink()
    assert settings.now("mc_client_secret") == "rotated"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTT_AMQP_CA_FILE", "nowhere"),
        ("OTT_AMQP_CERT_FILE", "junk"),
        ("OTT_AMQP_KEY_FILE", "theirs.key"),
        ("OTT_MC_CA_FILE", "ours.key"),
    ],
)
def test_a_tls_file_of_no_use_is_told_by_its_name_even_without_tls(monkeypatch, name, value):
    authority = trustme.CA()
    for owner in ("ours", "theirs"):
        issued = authority.issue_cert(owner)
        issued.private_key_pem.write_to_path(f"{owner}.key")
        issued.cert_chain_pems[0].write_to_path(f"{owner}.pem")
    authority.cert_pem.write_to_path("ca.pem")
    Path("junk").write_text("junk")
    for variable, file in (("CA", "ca.pem"), ("CERT", "ours.pem"), ("KEY", "ours.key")):
        monkeypatch.setenv(f"OTT_AMQP_{variable}_FILE", file)
    load_settings(amqp_url="amqp://host/")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name} must be .*readable PEM file.*: [^\n]+$"):
        load_settings(amqp_url="amqp://host/")


def test_a_value_and_a_file_together_are_refused(monkeypatch):
    monkeypatch.setenv("OTT_MC_CLIENT_SECRET", "x")
    monkeypatch.setenv("OTT_MC_CLIENT_SECRET_FILE", "y")
    with pytest.raises(SettingsError, match="must not both be set"):
        load_settings()


def test_a_dot_env_file_is_read_below_the_environment(monkeypatch):
    Path(".env").write_text("OTT_PREFETCH=3\nOTT_PREFIX=from.file\n")
    monkeypatch.setenv("OTT_PREFIX", "from.environment")
    settings = load_settings()
    assert (settings.prefetch, settings.prefix) == (3, "from.environment")


@pytest.mark.parametrize(("in_file", "outside"), [("", "_FILE"), ("_FILE", "")])
def test_the_environment_wins_over_dot_env_though_one_names_a_file(monkeypatch, in_file, outside):
    Path("3").write_text("3")
    Path("7").write_text("7")
    Path(".env").write_text(f"OTT_PREFETCH{in_file}=3\n")
    monkeypatch.setenv(f"OTT_PREFETCH{outside}", "7")
    assert load_settings().prefetch == 7


def test_an_empty_value_counts_as_not_given_but_for_the_admin_port(monkeypatch):
    monkeypatch.setenv("OTT_RATE_LIMIT", "")
    monkeypatch.setenv("OTT_ADMIN_PORT", "")
    settings = load_settings()
    assert (settings.rate_limit, settings.admin_port) == (None, None)


def test_several_brokers_are_named_in_one_variable(monkeypatch):
    monkeypatch.setenv("OTT_AMQP_URL", "amqp://u:p,w@a:5672/ott, amqps://b/ott,\tamqp://[::1]/,")
    given = load_settings().amqp_url.get_secret_value()
    assert split_urls(given) == ["amqp://u:p,w@a:5672/ott", "amqps://b/ott", "amqp://[::1]/"]


def test_a_variable_that_is_no_setting_is_known_with_the_nearest_name(monkeypatch):
    for name in ("OTT_PREFECTH", "OTT_MC_CLIENT_SECRET_FIEL", "OTT_XYZZY", "OTT_PREFETCH_FILE"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == {
        "OTT_MC_CLIENT_SECRET_FIEL": "no setting has this name; the nearest is OTT_MC_CLIENT_SECRET_FILE",
        "OTT_PREFECTH": "no setting has this name; the nearest is OTT_PREFETCH",
        "OTT_XYZZY": "no setting has this name",
    }


def test_the_subdomain_gives_both_urls(monkeypatch):
    monkeypatch.setenv("OTT_MC_SUBDOMAIN", "mc563885gzs27c5t9")
    settings = load_settings()
    assert settings.auth_url == "https://mc563885gzs27c5t9.auth.marketingcloudapis.com"
    assert settings.rest_url == "https://mc563885gzs27c5t9.rest.marketingcloudapis.com"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_plain_http_is_accepted_for_loopback(monkeypatch, host):
    monkeypatch.setenv("OTT_MC_REST_URL", f"http://{host}:8081/")
    assert load_settings().rest_url == f"http://{host}:8081"


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "OTT_MC_SUBDOMAIN"),
        ({"OTT_MC_SUBDOMAIN": "x"}, "OTT_MC_CLIENT_ID"),
        ({"OTT_MC_SUBDOMAIN": "x", "OTT_MC_CLIENT_ID": "y"}, "OTT_MC_CLIENT_SECRET"),
    ],
)
def test_what_run_needs_is_named(monkeypatch, given, missing):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{missing} must be set"):
        load_settings().require_marketing_cloud()


def test_no_secret_stands_in_the_settings_text(monkeypatch):
    monkeypatch.setenv("OTT_AMQP_URL", "amqp://user:s3cret@host/")
    monkeypatch.setenv("OTT_MC_CLIENT_SECRET", "s3cret")
    settings = load_settings()
    assert "s3cret" not in repr(settings) + str(settings) + str(settings.model_dump())


SECURITY = ["OTT_AMQP_CA_FILE", "OTT_CONSOLE_PASSWORD", "OTT_DEAD_LETTER_KEYS", "OTT_MC_CA_FILE"]
SECURITY += ["OTT_MC_CLIENT_SECRET"]


@pytest.mark.parametrize("name", SECURITY)
@pytest.mark.parametrize("value", ["", " ", ",\t,", "\ufeff"])
def test_a_security_setting_that_holds_nothing_is_an_error(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name} must not be empty"):
        load_settings()


@pytest.mark.parametrize("name", [name for name in SECURITY if not name.endswith("_FILE")])
@pytest.mark.parametrize("value", ["", " \n", ",\n", "\ufeff\n"])
def test_a_file_of_a_security_setting_that_holds_nothing_is_an_error(monkeypatch, tmp_path, name, value):
    (tmp_path / "file").write_text(value, encoding="utf-8")
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "file"))
    with pytest.raises(SettingsError, match=f"^{name}_FILE must be a file with a value"):
        load_settings()
    monkeypatch.setenv(f"{name}_FILE", "")
    with pytest.raises(SettingsError, match=f"^{name} must not be empty"):
        load_settings()


@pytest.mark.parametrize(
    ("field", "first", "second"),
    [
        ("mc_client_secret", "one", "two"),
        ("console_password", "one", "two"),
        ("mc_client_id", "one", "two"),
        ("dead_letter_keys", "a:" + "A" * 43 + "=", "b:" + "B" * 43 + "="),
        ("amqp_url", "amqp://one/", "amqp://two/"),
    ],
)
def test_the_last_good_value_of_a_file_stays_with_a_warning(monkeypatch, tmp_path, field, first, second):
    file, warned = tmp_path / "file", []
    variable = f"OTT_{field.upper()}_FILE"
    monkeypatch.setenv(variable, str(file))
    file.write_text("\ufeff" + first + "\n", encoding="utf-8")
    settings = load_settings()
    settings.warn_by(lambda name, why: warned.append((name, why)))
    assert settings.now(field) == first
    file.write_text(second, encoding="utf-8")
    assert settings.now(field) == second
    assert warned == []
    for broken in ("", " ,\n", "\ufeff"):
        file.write_text(broken, encoding="utf-8")
        assert settings.now(field) == second
    file.unlink()
    assert settings.now(field) == second
    assert len(warned) == 4
    assert all(name == variable and "the last valid value stays in use" in why for name, why in warned)
    assert not any(first in why or second in why for _, why in warned)


def test_certificates_are_read_anew_when_their_file_has_changed(monkeypatch, tmp_path):
    file, warned = tmp_path / "ca.pem", []
    trustme.CA().cert_pem.write_to_path(str(file))
    monkeypatch.setenv("OTT_MC_CA_FILE", str(file))
    settings = load_settings()
    settings.warn_by(lambda name, why: warned.append((name, why)))
    first = settings.tls("mc")
    assert settings.tls("mc") is first
    trustme.CA().cert_pem.write_to_path(str(file))
    second = settings.tls("mc")
    assert second.get_ca_certs() != first.get_ca_certs()
    file.write_text("")
    assert settings.tls("mc") is second
    assert settings.tls("mc") is second
    ((name, why),) = warned
    assert (name, "the last valid ones stay in use" in why) == ("OTT_MC_CA_FILE", True)


@pytest.mark.parametrize(("given", "read"), [("510000001 ", "510000001"), (" \t", None), ("\n7", "7")])
def test_space_around_the_business_unit_is_not_part_of_it(monkeypatch, given, read):
    monkeypatch.setenv("OTT_MC_ACCOUNT_ID", given)
    assert load_settings().mc_account_id == read
