"""The operator's commands of the README, pasted into a terminal of 80 columns."""

import os
import re
import sys
from pathlib import Path

from tests.acceptance.dead_letter_commands import turned_down
from tests.acceptance.terminal import in_a_terminal
from tests.rig import Rig, environment, messenger

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
WRAPPED = ("check",)  # its lines are sentences, which the terminal wraps


def pasted() -> str:
    """What a reader pastes."""
    found = re.search(r"```sh\n(ott-worker check\n.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


async def test_each_command_works_and_fits_into_80_columns(rig: Rig) -> None:
    requester = await rig.start()
    await requester.ask(messenger())
    await turned_down(rig, requester, "1732555047025799", "name", message_id="a-request-with-a-long-id")
    await requester.ask(messenger(endpointUrl="", pageName=""))
    variables = environment(rig.settings())
    variables |= {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
    for command in pasted().splitlines():
        code, shown = await in_a_terminal(command, variables)
        assert code == 0, (command, shown)
        assert "Traceback" not in shown
        if command.split()[1] not in WRAPPED:
            assert max(map(len, shown.splitlines())) <= 80, (command, shown)
