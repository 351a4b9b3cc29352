"""Facebook Messenger pages."""

from pydantic import Field

from worker.contract.fields import Attributes, Secret, Text


class MessengerAttributes(Attributes):
    """`ottPlatformAttributes` of a Messenger page, in the order of the API's table."""

    application_id: Text = Field(title="ApplicationId", description="Facebook application id.")
    application_secret: Secret = Field(title="ApplicationSecret", description="Facebook application secret.")
    page_id: Text = Field(title="PageId", description="Facebook page id.")
    page_name: Text = Field(title="PageName", description="Facebook page name.")
    page_access_token: Secret = Field(
        title="PageAccessToken", description="Access token that authenticates messages sent to Messenger."
    )
    callback_verify_token: Secret = Field(
        title="CallbackVerifyToken", description="Facebook token that verifies callback events."
    )
