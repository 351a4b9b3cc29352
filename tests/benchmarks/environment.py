"""The contenders' own environment: their Python packages, kept between runs in the system's directory for
temporary files."""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
ROOT = Path(tempfile.gettempdir()) / "ott-worker-benchmarks"
LOG = ROOT / "last.log"  # what the program that ran last has written


@dataclass(frozen=True)
class Environment:
    bin: Path

    @property
    def python(self) -> Path:
        return self.bin / "python"


def prepare() -> Environment:
    """Install what is not installed yet, as `requirements.txt` has it now."""
    environment, stamp = Environment(ROOT / "venv" / "bin"), ROOT / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if not stamp.is_file() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", ROOT / "venv"], check=True)
        pip = [environment.python, "-m", "pip", "install", "-qqq", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        stamp.write_text(wanted)
    return environment
