"""Build wheel, sdist and bill of materials of a clean tree, and check them: `release.py [FOLDER]`."""

import json
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "ott_registration_worker"


def build(target: Path) -> list[Path]:
    """The files of the release, checked. Raises SystemExit with one line that says what is wrong."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    notes = (ROOT / "deploy" / "CHANGELOG.md").read_text("utf-8")
    if re.findall(r"^## (\S+)", notes, re.MULTILINE)[:1] != [version]:
        sys.exit(f"deploy/CHANGELOG.md does not begin with {version}")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ott-release-") as folder:
        _export(Path(folder))
        for what in ("build_wheel", "build_sdist"):
            _run(
                [sys.executable, "-c", f"from setuptools.build_meta import *; {what}({str(target)!r})"],
                folder,
            )
    wheel, sdist = target / f"{NAME}-{version}-py3-none-any.whl", target / f"{NAME}-{version}.tar.gz"
    sbom = target / f"{NAME}-{version}.cdx.json"
    _run([str(ROOT / "deploy" / "sbom"), str(sbom)], ROOT)
    _check_wheel(wheel, version)
    with tarfile.open(sdist) as archive:
        _want(sdist, archive.getnames(), f"{NAME}-{version}/pyproject.toml")
    if json.loads(sbom.read_text("utf-8"))["bomFormat"] != "CycloneDX":
        sys.exit(f"{sbom.name} is no CycloneDX document")
    return [wheel, sdist, sbom]


def _export(folder: Path) -> None:
    """What is committed, and nothing that only lies about."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        source = ROOT / name
        if name and source.is_file():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source.read_bytes())


def _check_wheel(wheel: Path, version: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        wanted = [
            str(path.relative_to(ROOT))
            for path in (ROOT / "worker").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
        ]
        _want(wheel, names, *wanted)
        if foreign := [
            name for name in names if not name.startswith(("worker/", f"{NAME}-{version}.dist-info/"))
        ]:
            sys.exit(f"{wheel.name} holds what does not belong there: {foreign[0]}")


def _want(file: Path, names: Iterable[str], *wanted: str) -> None:
    if missing := sorted(set(wanted) - set(names)):
        sys.exit(f"{file.name} lacks {missing[0]}")


def _run(command: list[str], folder: str | Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    for path in build(Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT / "dist"):
        print(path)
