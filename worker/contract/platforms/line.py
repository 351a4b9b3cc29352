"""LINE channels."""

from pydantic import Field

from worker.contract.fields import Attributes, Flag, OptionalSecret, Secret, Text


class LineAttributes(Attributes):
    """`ottPlatformAttributes` of a LINE channel, in the order of the API's table."""

    channel_id: Text = Field(title="ChannelId", description="LINE channel id.")
    channel_name: Text = Field(title="ChannelName", description="LINE channel name.")
    channel_secret: Secret = Field(title="ChannelSecret", description="LINE channel secret.")
    customer_connect_secret: OptionalSecret = Field(
        default=None,
        title="CustomerConnectSecret",
        description="Validates LINE inbound events when the Switcher API is used.",
    )
    is_transactional: Flag = Field(
        title="isTransactional", description="Whether the channel is transactional (1) or a reseller's (0)."
    )
    is_test_channel: Flag = Field(
        title="isTestChannel", description="Whether this is a test channel: 0 or 1."
    )
