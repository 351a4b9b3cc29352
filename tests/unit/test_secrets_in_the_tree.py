"""No secret of anything real is in the tree."""

import re
import subprocess
from pathlib import Path

from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

ROOT = Path(__file__).parents[2]
# Shapes that a secret of some service or protocol has, wherever they stand.
SHAPES = """
    Artifactory AWSKey AzureStorageKey BasicAuth DiscordBotToken GitHubToken GitLabToken JwtToken Mailchimp
    Npm OpenAI PrivateKey PypiToken SendGrid Slack Stripe TwilioKey
""".split()  # noqa: SIM905 - a list of words is easier to read so
HARMLESS = {
    "guest",  # RabbitMQ's own default
    "sandbox",  # the local Marketing Cloud's
    "secret",
    "hidden",
    "pass",
    "password",
    "s3cret",
    "s3cret-one",
    "PASSWORD",  # stands for one in documents and messages
    "canary",
    "word",
    "03d537gg656gvkbe9b430f002e9c4517",  # the API document's own examples
    "31234arajcauoherbasuhb213ijqjohbjhb123",
}


def tree() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def findings(files: list[Path]) -> list[str]:
    with transient_settings({"plugins_used": [{"name": f"{shape}Detector"} for shape in SHAPES]}):
        return [
            f"{path.name}:{secret.line_number} {secret.type}"
            for path in files
            for secret in scan_file(str(path))
            if not _is_harmless(secret.secret_value or "")
        ]


def _is_harmless(value: str) -> bool:
    # What stands for a value (…, <…>, ${…}, {…}, a path), or names a Kubernetes secret, is none.
    return value in HARMLESS or re.search(r"[…<{}/*]|\$|example|^ott-[a-z-]+$", value) is not None


def test_nothing_in_the_tree_has_the_shape_of_a_secret():
    files = tree()
    assert len(files) > 100
    assert findings(files) == []


def test_a_secret_that_is_planted_is_found(tmp_path):
    planted = tmp_path / "settings.py"
    planted.write_text("key = 'AKIA" + "QWERTYUIOPASDFGH'\n")  # as in AWS's keys
    assert findings([planted])
