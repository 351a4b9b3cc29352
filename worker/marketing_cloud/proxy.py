"""The proxy that the environment names for a URL: `HTTPS_PROXY` or `HTTP_PROXY`, unless `NO_PROXY` lists the
host. The names are read in lower case too, as other programs do."""

import os
from dataclasses import dataclass, field
from urllib.request import getproxies, proxy_bypass

from aiohttp import encode_basic_auth
from yarl import URL

from worker.errors import SettingsError
from worker.settings import Settings
from worker.settings.checks import check_host

REST_HOST = "rest.marketingcloudapis.com"  # stands for the one that the token will name


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the variable that names it."""

    variable: str
    url: URL
    authorization: str | None = field(repr=False)  # the value of Proxy-Authorization


def check_proxies(settings: Settings) -> None:
    """Raise SettingsError if HTTPS_PROXY or HTTP_PROXY holds no URL of a proxy. Both are checked, whatever
    scheme the URLs have, so that a mistake shows at the start."""
    for url in (settings.auth_url, settings.rest_url):
        host = URL(url).host if url else REST_HOST
        for scheme in ("https", "http"):
            proxy_for(URL.build(scheme=scheme, host=host or REST_HOST))


def proxy_for(url: URL) -> Proxy | None:
    """The proxy for `url`, or None. Raises SettingsError where the variable holds no URL of a proxy."""
    value = getproxies().get(url.scheme, "").strip()
    if not value or proxy_bypass(url.host or ""):
        return None
    lower = f"{url.scheme}_proxy"
    variable = lower if lower in os.environ else lower.upper()
    try:
        proxy = URL(value)
        if proxy.scheme != "http" or proxy.host is None:
            raise ValueError  # noqa: TRY301
        check_host(value)
        user, password = proxy.user, proxy.password or ""
        authorization = None if user is None else encode_basic_auth(user, password)
    except ValueError:
        raise SettingsError(
            f"{variable} must be the URL of a proxy that is reached by http://, such as "
            "http://proxy.example:3128"
        ) from None
    return Proxy(variable, proxy.origin(), authorization)
