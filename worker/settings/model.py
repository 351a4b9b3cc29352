"""The settings of one process. Each field `some_name` is the variable `OTT_SOME_NAME` (contract §7)."""

import difflib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, ValidationError, model_validator

from worker.errors import SettingsError
from worker.settings.checks import (
    AccountId,
    Age,
    AmqpUrls,
    HttpUrl,
    OptionalPort,
    Port,
    Prefix,
    SealingKeys,
    Seconds,
    Subdomain,
    explain,
    tls_context,
)
from worker.settings.sources import PREFIX, environment, is_blank, read_file, read_value, variable

Warn = Callable[[str, str], object]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Variables of our own tools, which stand beside the worker's in one environment.
NOT_SETTINGS = frozenset(
    {"OTT_BROKER", "OTT_TEST_AMQP_URLS", "OTT_TEST_RABBITMQ_ROOT", "OTT_TEST_RABBITMQ_ROOTS"}
)


class Settings(BaseModel):
    """All settings of one process. Read them with `load_settings`, which explains what is wrong."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    amqp_url: AmqpUrls = Field(
        default=SecretStr("amqp://guest:guest@localhost:5672/"),
        description="`amqps://` for TLS; several nodes of a cluster separated by commas",
    )
    amqp_ca_file: Path | None = Field(
        default=None, description="CA certificates (PEM) that vouch for the broker"
    )
    amqp_cert_file: Path | None = Field(default=None, description="client certificate (PEM) for the broker")
    amqp_key_file: Path | None = Field(default=None, description="key of the client certificate (PEM)")
    prefix: Prefix = Field(default="ott.registration", description="names every queue and exchange")
    declare: bool = Field(default=True, description="declare what is missing; `false` only checks")
    mc_subdomain: Subdomain | None = Field(default=None, description="gives both URLs below")
    mc_auth_url: HttpUrl | None = Field(default=None, description="overrides the auth URL")
    mc_rest_url: HttpUrl | None = Field(default=None, description="overrides the REST URL")
    mc_insecure_http: bool = Field(
        default=False, description="accept `http://` beyond loopback: a sandbox in a container"
    )
    mc_ca_file: Path | None = Field(
        default=None, description="CA certificates (PEM) that vouch for Marketing Cloud"
    )
    mc_client_id: str | None = Field(default=None, description="required by `run`")
    mc_client_secret: SecretStr | None = Field(default=None, description="required by `run`")
    mc_account_id: AccountId = Field(default=None, description="default business unit (MID)")
    prefetch: int = Field(default=200, ge=1, le=65535, description="deliveries in flight")
    partitions: int = Field(default=1, ge=1, le=64, description="queues that share the load; 1 for none")
    rate_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="calls a second; unlimited when empty"
    )
    coalesce_after: int = Field(
        default=16,
        ge=0,
        description="waiting requests of one page or channel; with more, the newest goes first; 0 never",
    )
    http_timeout: Seconds = Field(default=30, description="seconds for one whole call")
    retry_attempts: int = Field(default=6, ge=1, description="calls for one request, outages not counted")
    retry_budget: Seconds = Field(default=300, description="seconds for one request, outages not counted")
    retry_base: Seconds = Field(default=0.5, description="seconds; first back-off step")
    gate_after: int = Field(default=5, ge=1, description="failures in a row that mean an outage")
    hold_limit: Annotated[float, Field(gt=0, le=1500)] = Field(
        default=600, description="seconds that a delivery is held before it goes back"
    )
    shutdown_grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=25, description="seconds to drain after SIGTERM"
    )
    max_body_bytes: int = Field(default=1_048_576, ge=1, description="larger requests are refused")
    journal: bool = Field(default=True, description="keep a record of settled requests; replays need it")
    journal_max_age: Age = Field(default="30D", description="a number and one of `Y M D h m s`")
    journal_max_bytes: int = Field(default=1_000_000_000, ge=1, le=2**63 - 1, description="bytes")
    dead_letter_keys: SealingKeys | None = Field(
        default=None,
        description="`ID:KEY` to encrypt dead letters with (32 bytes in base64); further ones only decrypt",
    )
    admin_host: str = Field(default="127.0.0.1", description="address of the admin server")
    admin_port: OptionalPort = Field(
        default=8080, description="`/livez`, `/readyz`, `/metrics`; 0 takes a free port, empty turns it off"
    )
    console_host: str = Field(default="127.0.0.1", description="address of the console")
    console_port: Port = Field(default=8090, description="port of the console; 0 takes a free one")
    console_password: SecretStr | None = Field(
        default=None, description="asked for by the console; required beyond loopback"
    )
    console_url: HttpUrl | None = Field(
        default=None, description="the address that people use behind a reverse proxy: scheme, host, path"
    )
    console_read_only: bool = Field(default=False, description="the console shows, and changes nothing")
    traces: bool = Field(
        default=False, description="trace with OpenTelemetry (the extra `otel`), set by its own variables"
    )
    log_format: Literal["json", "console"] | None = Field(
        default=None, description="`json` or `console`; by default `json` unless a terminal"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug`, `info`, `warning` or `error`"
    )

    _given_in_code: frozenset[str] = PrivateAttr(default=frozenset())
    _last_good: dict[str, str] = PrivateAttr(default_factory=dict)
    _tls: dict[str, tuple[object, ssl.SSLContext]] = PrivateAttr(default_factory=dict)
    _warn: Warn = PrivateAttr(default_factory=lambda: lambda name, why: None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.amqp_cert_file is None) != (self.amqp_key_file is None):
            raise ValueError("OTT_AMQP_CERT_FILE and OTT_AMQP_KEY_FILE must be set together")
        # Checked at the start: at the first connection a wrong file would look like an outage.
        if self.amqp_ca_file or self.amqp_cert_file:
            self.tls("amqp")
        if self.mc_ca_file:
            self.tls("mc")
        for name in ("mc_auth_url", "mc_rest_url"):
            url = urlsplit(getattr(self, name) or "")
            if url.scheme == "http" and url.hostname not in LOOPBACK and not self.mc_insecure_http:
                raise ValueError(
                    f"{variable(name)} must be an https:// URL "
                    "(http:// beyond loopback needs OTT_MC_INSECURE_HTTP=true)"
                )
        return self

    @property
    def auth_url(self) -> str | None:
        """The authentication base URL, without a trailing slash."""
        return self.mc_auth_url or self._tenants_url("auth")

    @property
    def rest_url(self) -> str | None:
        """The REST base URL, or None: then the token response names it."""
        return self.mc_rest_url or self._tenants_url("rest")

    def _tenants_url(self, service: str) -> str | None:
        return self.mc_subdomain and f"https://{self.mc_subdomain}.{service}.marketingcloudapis.com"

    def now(self, field: str) -> str:
        """The value of a text `field` now: its file may have been replaced since the start, so that a
        secret can be rotated without a restart. What was given in code stays as it is. Where the file cannot
        be read, or holds no such value, the last good one stays, with a warning."""
        value = getattr(self, field)
        current = value.get_secret_value() if isinstance(value, SecretStr) else value or ""
        good = self._last_good.get(field, str(current))
        if field in self._given_in_code:
            return good
        try:
            path = environment().get(f"{variable(field)}_FILE")
            if not path:
                return good
            given = read_file(path, variable(field))
            if is_blank(given):
                raise SettingsError(f"{variable(field)}_FILE is empty")  # noqa: TRY301
            Settings(**{field: given})
        except (SettingsError, ValidationError) as error:
            why = explain(error) if isinstance(error, ValidationError) else error
            self._warn(f"{variable(field)}_FILE", f"{why}; the last good value stays")
            return good
        self._last_good[field] = given
        return given

    def tls(self, peer: Literal["amqp", "mc"]) -> ssl.SSLContext:
        """What verifies the broker or Marketing Cloud. The files are read anew when one of them has changed;
        where they cannot be used the last good ones stay, with a warning. Raises SettingsError."""
        files = [getattr(self, f"{peer}_{name}_file", None) for name in ("ca", "cert", "key")]
        state = [_state_of(path) for path in files]
        before, context = self._tls.get(peer, (None, None))
        if context is not None and before == state:
            return context
        try:
            context = tls_context(peer, *files)
        except ValueError as error:
            if context is None:
                raise SettingsError(str(error)) from None
            self._warn(str(error).partition(" ")[0], f"{error}; the last good ones stay")
        self._tls[peer] = (state, context)
        return context

    def warn_by(self, warn: Warn) -> None:
        """Tell `warn` the variable and the text where a file that was replaced cannot be used."""
        self._warn = warn

    def require_marketing_cloud(self) -> None:
        """Raise SettingsError where what a call to Marketing Cloud needs is missing."""
        for given, missing in (
            (self.auth_url, "SUBDOMAIN must be set: your tenant's subdomain (or set OTT_MC_AUTH_URL)"),
            (self.mc_client_id, "CLIENT_ID must be set: the client id of your API package"),
            (
                self.mc_client_secret,
                "CLIENT_SECRET must be set: the client secret of your API package "
                "(or OTT_MC_CLIENT_SECRET_FILE)",
            ),
        ):
            if not given:
                raise SettingsError(f"OTT_MC_{missing}")


def _state_of(path: Path | None) -> object:
    """What changes with the file."""
    try:
        found = path and path.stat()
    except OSError:
        return "missing"
    return found and (found.st_mtime_ns, found.st_size, found.st_ino)


def load_settings(**overrides: Any) -> Settings:
    """Read and check all settings. Raises SettingsError: one line, no value of a secret."""
    try:
        given = environment()
        values = {field: read_value(given, field) for field in Settings.model_fields}
        settings = Settings(
            **{name: value for name, value in values.items() if value is not None} | overrides
        )
        settings._given_in_code = frozenset(overrides)
    except ValidationError as error:
        raise SettingsError(explain(error)) from None
    return settings


def unknown_variables() -> dict[str, str]:
    """Variables `OTT_…` that are no setting, each with why it is not read, which names the nearest setting
    (contract §7). Raises SettingsError where `.env` cannot be read."""
    known = {variable(field) for field in Settings.model_fields}
    known |= {f"{name}_FILE" for name in known if not name.endswith("_FILE")}
    strangers = {name for name in environment() if name.startswith(PREFIX)} - known - NOT_SETTINGS
    nearest = {name: difflib.get_close_matches(name, sorted(known), n=1) for name in sorted(strangers)}
    return {
        name: "no setting has this name" + (f"; the nearest is {known[0]}" if known else "")
        for name, known in nearest.items()
    }
