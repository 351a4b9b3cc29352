"""The settings of one process. Each field `some_name` is the variable `OTT_SOME_NAME` (contract §7)."""

import difflib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self
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
    Positive,
    Prefix,
    SealingKeys,
    Subdomain,
    explain,
    tls_context,
)
from worker.settings.sources import PREFIX, environment, is_blank, read_file, read_value, variable

Warn = Callable[[str, str], object]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
# Variables of this project's tools, which may be in the same environment.
NOT_SETTINGS = frozenset(
    {"OTT_BROKER", "OTT_TEST_AMQP_URLS", "OTT_TEST_RABBITMQ_ROOT", "OTT_TEST_RABBITMQ_ROOTS"}
)


def _setting(description: str, default: Any = None, **limits: Any) -> Any:
    return Field(default, description=description, **limits)


class Settings(BaseModel):
    """All settings of one process. Read them with `load_settings`, which explains errors."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    amqp_url: AmqpUrls = _setting(
        "`amqps://` for TLS; several nodes of a cluster separated by commas",
        SecretStr("amqp://guest:guest@localhost:5672/"),
    )
    amqp_ca_file: Path | None = _setting("CA certificates (PEM) for the broker")
    amqp_cert_file: Path | None = _setting("client certificate (PEM) for the broker")
    amqp_key_file: Path | None = _setting("key of the client certificate (PEM)")
    prefix: Prefix = _setting("names every queue and exchange", "ott.registration")
    declare: bool = _setting("declare what is missing; `false` only checks", True)
    mc_subdomain: Subdomain | None = _setting("the tenant's subdomain; defines both URLs below")
    mc_auth_url: HttpUrl | None = _setting("overrides the auth URL")
    mc_rest_url: HttpUrl | None = _setting("overrides the REST URL")
    mc_insecure_http: bool = _setting("accept `http://` beyond loopback: a sandbox in a container", False)
    mc_ca_file: Path | None = _setting("CA certificates (PEM) for Marketing Cloud")
    mc_client_id: str | None = _setting("required by `run`")
    mc_client_secret: SecretStr | None = _setting("required by `run`")
    mc_account_id: AccountId = _setting("default business unit (MID)")
    prefetch: int = _setting("deliveries in flight", 200, ge=1, le=65535)
    partitions: int = _setting("queues that share the load; 1 for none", 1, ge=1, le=64)
    rate_limit: Positive | None = _setting("calls a second; unlimited when empty")
    coalesce_after: int = _setting(
        "waiting requests of one page or channel; with more, the newest goes first; 0 never", 16, ge=0
    )
    http_timeout: Positive = _setting("seconds for one whole call", 30)
    retry_attempts: int = _setting("calls for one request, outages not counted", 6, ge=1)
    retry_budget: Positive = _setting("seconds for one request, outages not counted", 300)
    retry_base: Positive = _setting("seconds; first back-off step", 0.5)
    gate_after: int = _setting("failures in a row that mean an outage", 5, ge=1)
    hold_limit: Positive = _setting("seconds that a delivery is held before it is requeued", 600, le=1500)
    shutdown_grace: float = _setting("seconds to drain after SIGTERM", 25, ge=0, allow_inf_nan=False)
    max_body_bytes: int = _setting("larger requests are refused", 1_048_576, ge=1)
    journal: bool = _setting("keep a record of settled requests; replays need it", True)
    journal_max_age: Age = _setting("a number and one of `Y M D h m s`", "30D")
    journal_max_bytes: int = _setting("bytes", 1_000_000_000, ge=1, le=2**63 - 1)
    dead_letter_keys: SealingKeys | None = _setting(
        "`ID:KEY` to encrypt dead letters with (32 bytes in base64); further ones only decrypt"
    )
    admin_host: str = _setting("address of the admin server", "127.0.0.1")
    admin_port: OptionalPort = _setting(
        "`/livez`, `/readyz`, `/metrics`; 0 chooses a free port, empty turns it off", 8080
    )
    console_host: str = _setting("address of the console", "127.0.0.1")
    console_port: Port = _setting("port of the console; 0 chooses a free one", 8090)
    console_password: SecretStr | None = _setting("password of the console; required beyond loopback")
    console_url: HttpUrl | None = _setting("the console's URL behind a reverse proxy: scheme, host, path")
    console_read_only: bool = _setting("the console changes nothing", False)
    traces: bool = _setting("trace with OpenTelemetry (extra `otel`), configured by its variables", False)
    log_format: Literal["json", "console"] | None = _setting(
        "`json` or `console`; by default `json` unless a terminal"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "`debug`, `info`, `warning` or `error`", "info"
    )

    _set_in_code: frozenset[str] = PrivateAttr(default=frozenset())
    _last_good: dict[str, str] = PrivateAttr(default_factory=dict)
    _tls: dict[str, tuple[object, ssl.SSLContext]] = PrivateAttr(default_factory=dict)
    _warn: Warn = PrivateAttr(default_factory=lambda: lambda name, why: None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.amqp_cert_file is None) != (self.amqp_key_file is None):
            raise ValueError("OTT_AMQP_CERT_FILE and OTT_AMQP_KEY_FILE must be set together")
        # Check the files at the start: at the first connection a wrong one would look like an outage.
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
        """The present value of a text `field`. Its file is read each time, so that a secret can be rotated
        without a restart. A value that was set in code stays. If the file is unreadable or its value invalid,
        the last valid value stays, with a warning."""
        value = getattr(self, field)
        current = value.get_secret_value() if isinstance(value, SecretStr) else value or ""
        good = self._last_good.get(field, str(current))
        if field in self._set_in_code:
            return good
        try:
            path = environment().get(f"{variable(field)}_FILE")
            if not path:
                return good
            text = read_file(path, variable(field))
            if is_blank(text):
                raise SettingsError(f"{variable(field)}_FILE is empty")  # noqa: TRY301
            Settings(**{field: text})
        except (SettingsError, ValidationError) as error:
            why = explain(error) if isinstance(error, ValidationError) else error
            self._warn(f"{variable(field)}_FILE", f"{why}; the last valid value stays in use")
            return good
        self._last_good[field] = text
        return text

    def tls(self, peer: Literal["amqp", "mc"]) -> ssl.SSLContext:
        """The TLS context for the broker or Marketing Cloud. The files are read again when one has changed.
        If they cannot be used, the last valid context stays, with a warning. Raises SettingsError."""
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
            self._warn(str(error).partition(" ")[0], f"{error}; the last valid ones stay in use")
        self._tls[peer] = (state, context)
        return context

    def warn_by(self, warn: Warn) -> None:
        """Call `warn` with the variable and a text if a replaced file cannot be used."""
        self._warn = warn

    def require_marketing_cloud(self) -> None:
        """Raise SettingsError if a setting that calls to Marketing Cloud need is missing."""
        for value, missing in (
            (self.auth_url, "SUBDOMAIN must be set: your tenant's subdomain (or set OTT_MC_AUTH_URL)"),
            (self.mc_client_id, "CLIENT_ID must be set: the client id of your API package"),
            (
                self.mc_client_secret,
                "CLIENT_SECRET must be set: the client secret of your API package "
                "(or OTT_MC_CLIENT_SECRET_FILE)",
            ),
        ):
            if not value:
                raise SettingsError(f"OTT_MC_{missing}")


def _state_of(path: Path | None) -> object:
    """A value that changes when the file changes."""
    try:
        found = path and path.stat()
    except OSError:
        return "missing"
    return found and (found.st_mtime_ns, found.st_size, found.st_ino)


def load_settings(**overrides: Any) -> Settings:
    """Read and check all settings. Raises SettingsError: one line, without the value of a secret."""
    try:
        variables = environment()
        values = {field: read_value(variables, field) for field in Settings.model_fields}
        settings = Settings(
            **{name: value for name, value in values.items() if value is not None} | overrides
        )
        settings._set_in_code = frozenset(overrides)
    except ValidationError as error:
        raise SettingsError(explain(error)) from None
    return settings


def unknown_variables() -> dict[str, str]:
    """Variables `OTT_…` that are not settings, each with a text that names the nearest setting (contract §7).
    Raises SettingsError if `.env` cannot be read."""
    known = {variable(field) for field in Settings.model_fields}
    known |= {f"{name}_FILE" for name in known if not name.endswith("_FILE")}
    strangers = {name for name in environment() if name.startswith(PREFIX)} - known - NOT_SETTINGS
    nearest = {name: difflib.get_close_matches(name, sorted(known), n=1) for name in sorted(strangers)}
    return {
        name: "no setting has this name" + (f"; the nearest is {known[0]}" if known else "")
        for name, known in nearest.items()
    }
