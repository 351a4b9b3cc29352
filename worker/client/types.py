"""Types of requests, for editors and type checkers."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NotRequired, TypedDict

Flag = bool | Literal[0, 1]


class MessengerAttributes(TypedDict):
    """A Facebook page."""

    applicationId: str
    applicationSecret: str
    pageId: str
    pageName: str
    pageAccessToken: str
    endpointUrl: str
    callbackVerifyToken: str
    isActive: Flag


class LineAttributes(TypedDict):
    """A LINE channel."""

    channelId: str
    channelName: str
    channelSecret: str
    customerConnectSecret: NotRequired[str | None]
    endpointUrl: str
    isTransactional: Flag
    isTestChannel: Flag
    isActive: Flag


class MessengerRegistration(TypedDict):
    """The JSON object of the API for a Messenger page."""

    ottPlatformName: Literal["messenger"]
    ottPlatformAttributes: MessengerAttributes


class LineRegistration(TypedDict):
    """The JSON object of the API for a LINE channel."""

    ottPlatformName: Literal["line"]
    ottPlatformAttributes: LineAttributes


Registration = MessengerRegistration | LineRegistration | Mapping[str, Any]


class RequestOptions(TypedDict, total=False):
    """Options of the clients' methods: the request's id (by default a new one); the business unit (MID); when
    the registration's data was true, with a time zone; and the seconds to wait. With `as_of`, nothing newer
    is overwritten (contract §2), not even by a copy that RabbitMQ enqueues late. Pass it with all requests
    for a resource, or with none."""

    request_id: str | None
    account_id: str | None
    as_of: datetime | None
    timeout: float | None
