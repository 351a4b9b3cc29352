"""The unit: true to the worker's settings, locked up, and accepted by systemd where that is installed."""

import re
import shutil
import subprocess
import warnings
from pathlib import Path

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "ott-worker.service"
README = (Path(__file__).parents[2] / "deploy" / "docs" / "systemd.md").read_text()
EXPOSURE = 20  # of 100, as `systemd-analyze security` counts


def test_secrets_come_from_files():
    names = re.findall(r"^Environment=(\w+)=", UNIT.read_text(), re.MULTILINE)
    assert not [name for name in names if re.search("SECRET|URL|ID", name) and not name.endswith("_FILE")]


def test_systemd_accepts_it_and_finds_it_locked_up(tmp_path):
    if shutil.which("systemd-analyze") is None:
        warnings.warn("systemd is not installed: the unit was read here only", stacklevel=1)
        return
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub("(?m)^ExecStart=.*", "ExecStart=/bin/true", UNIT.read_text()))
    for arguments in (["verify"], ["security", "--offline=yes", f"--threshold={EXPOSURE}"]):
        done = subprocess.run(
            ["systemd-analyze", *arguments, unit], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
    rated = re.search(r"exposure level .*: ([\d.]+)", done.stdout)
    assert rated is not None
    assert f"rates the unit's exposure {rated[1]} of 10" in README
