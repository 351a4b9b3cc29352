"""The contenders' own environment: their Python packages and Node modules, kept between runs in the
system's directory for temporary files."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
NODE_MODULES = ("amqplib@2", "undici@7")


@dataclass(frozen=True)
class Environment:
    root: Path

    @property
    def bin(self) -> Path:
        return self.root / "venv" / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"

    @property
    def node(self) -> str:
        return shutil.which("node") or ""

    @property
    def variables(self) -> dict[str, str]:
        """What a contender needs to find its libraries."""
        return {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "NODE_PATH": str(self.root / "node" / "node_modules"),
            "NODE_ENV": "production",
        }


def prepare() -> Environment:
    """Install what is not installed yet, as `requirements.txt` has it now."""
    environment = Environment(Path(tempfile.gettempdir()) / "ott-worker-benchmarks")
    stamp = environment.root / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if not stamp.is_file() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment.root / "venv"], check=True)
        pip = [environment.python, "-m", "pip", "install", "-qqq", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        stamp.write_text(wanted)
    modules = environment.root / "node"
    if environment.node and shutil.which("npm") and not (modules / "node_modules").is_dir():
        modules.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", modules]
        subprocess.run([*npm, *NODE_MODULES], check=True)
    return environment
