"""The tutorials, pasted from top to bottom into a terminal beside a demonstration that serves."""

import re
from pathlib import Path

import pytest

from tests.acceptance.terminal import in_a_terminal
from tests.acceptance.test_demo_serve import VARIABLES, blocks, demonstration

DOCS = Path(__file__).parents[2] / "deploy" / "docs"
BLOCK = re.compile(r"(?:Save as `(\S+)`:\n\n)?^```(sh|python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def lines(text: str) -> list[str]:
    """What must be in the output, as regular expressions: `…` stands for anything."""
    return [".*".join(map(re.escape, line.split("…"))) for line in text.splitlines() if line]


@pytest.mark.parametrize("page", ["tutorial-developer.md", "tutorial-bulk.md", "tutorial-operator.md"])
async def test_a_tutorial_works_when_it_is_pasted(broker_url: str, tmp_path: Path, page: str) -> None:
    said = ""
    async with demonstration(broker_url) as (_, shown):
        (address,) = re.findall(r"sandbox on (\S+)", shown)
        setup = f"{blocks(shown)[0]}\nexport SANDBOX=http://{address} COLUMNS=200"
        for name, kind, text in BLOCK.findall((DOCS / page).read_text(encoding="utf-8")):
            if kind == "python":
                (tmp_path / name).write_text(text, encoding="utf-8")
            elif kind == "sh":
                code, said = await in_a_terminal(f"set -e\n{setup}\n{text}", VARIABLES, cwd=tmp_path)
                assert code == 0, said
                assert "Traceback" not in said
            else:
                assert [line for line in lines(text) if not re.search(line, said)] == [], said
