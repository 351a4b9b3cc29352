"""The unit: true to the worker's settings, locked up, and accepted by systemd where that is installed."""

import configparser
import re
import shutil
import subprocess
import warnings
from pathlib import Path

from worker.settings import Settings

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "ott-worker.service"
README = (Path(__file__).parents[2] / "deploy" / "docs" / "systemd.md").read_text()
EXPOSURE = 20  # of 100, as `systemd-analyze security` counts
LOCKED = {
    "NoNewPrivileges": "yes",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "MemoryDenyWriteExecute": "yes",
    "CapabilityBoundingSet": "",
    "UMask": "0077",
}


def service() -> dict[str, list[str]]:
    """The [Service] section; a name may stand there several times."""
    given: dict[str, list[str]] = {}
    section = UNIT.read_text().split("[Service]\n")[1].split("\n[")[0]
    for line in section.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            given.setdefault(name, []).append(value)
    return given


def test_the_unit_is_locked_up() -> None:
    assert {name: service()[name][0] for name in LOCKED} == LOCKED
    assert service()["User"] == ["ott"]
    assert "u ott -" in UNIT.with_name("ott-worker.sysusers.conf").read_text()


def test_its_settings_are_the_workers_and_secrets_come_from_files() -> None:
    names = [assignment.split("=")[0] for assignment in service()["Environment"]]
    settings = {f"OTT_{name.upper()}" for name in Settings.model_fields}
    assert {name.removesuffix("_FILE") for name in names} <= settings
    assert not [name for name in names if re.search("SECRET|URL|ID", name) and not name.endswith("_FILE")]


def test_systemd_accepts_it_and_finds_it_locked_up(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        warnings.warn("systemd is not installed: the unit was read here only", stacklevel=1)
        configparser.ConfigParser(strict=False, interpolation=None).read_string(UNIT.read_text())
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
