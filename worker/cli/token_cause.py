"""Why Marketing Cloud gives no token, or one that is of no use: the variable or the place to look."""

from worker.events import EventListener
from worker.marketing_cloud.answer import Cause
from worker.marketing_cloud.client import MarketingCloud
from worker.marketing_cloud.token import TokenTrouble
from worker.settings import Settings

NEEDED_SCOPE = "ott_channels_write"


async def of(error: TokenTrouble, settings: Settings) -> str:
    """The trouble and its cause, in one line. Where a business unit is set, it is found out by one more
    token request whether a token is given without it."""
    return f"{error}: {await _cause(error, settings)}"


async def _cause(error: TokenTrouble, settings: Settings) -> str:
    where = "OTT_MC_AUTH_URL" if settings.mc_auth_url else "OTT_MC_SUBDOMAIN"
    if error.cause in (Cause.NO_ANSWER, Cause.PAGE, Cause.NO_TOKEN) or error.status in (404, 405):
        return f"check {where}, which gives {settings.auth_url}"
    if error.cause is Cause.ERROR:
        return "this is Marketing Cloud's side: the worker waits and tries again"
    if settings.mc_account_id and await _is_given_without_account(settings):
        return f"check OTT_MC_ACCOUNT_ID ({settings.mc_account_id}), for without it a token is given"
    if error.cause is Cause.UNAUTHORIZED_CLIENT:
        return "add this machine's public IP address to the allowlist in Marketing Cloud's Setup (Security)"
    if error.cause is Cause.INVALID_SCOPE:
        return f"grant the scope {NEEDED_SCOPE} to the package's component in Marketing Cloud's Setup"
    return "check OTT_MC_CLIENT_ID and OTT_MC_CLIENT_SECRET; a secret ends 180 days after it was made"


async def _is_given_without_account(settings: Settings) -> bool:
    anonymous = settings.model_copy(update={"mc_account_id": None})
    try:
        async with MarketingCloud(anonymous, EventListener()) as marketing_cloud:
            await marketing_cloud.accounts.get(None)
    except TokenTrouble:
        return False
    return True


def of_scope(scope: frozenset[str] | None) -> str:
    """What the token's scope lacks, empty where it suffices or is not told."""
    if not scope or NEEDED_SCOPE in scope:
        return ""
    return (
        f"the token lacks the scope {NEEDED_SCOPE}: grant it to the package's component in Marketing Cloud's "
        "Setup, Installed Packages (OTT, Channels, Write); it takes up to 5 minutes"
    )
