"""A terminal of 80 columns, for what people paste into one."""

import asyncio
import fcntl
import os
import pty
import struct
import termios
from pathlib import Path


async def in_a_terminal(command: str, variables: dict[str, str], cwd: Path | None = None) -> tuple[int, str]:
    """The exit code of a command in a terminal, and what stands there then."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown: list[bytes] = []
    asyncio.get_running_loop().add_reader(ours, lambda: shown.append(os.read(ours, 65536)))
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=variables,
        cwd=cwd,
    )
    code = await asyncio.wait_for(process.wait(), 60)
    await asyncio.sleep(0.1)
    asyncio.get_running_loop().remove_reader(ours)
    os.close(ours)
    os.close(theirs)
    return code, b"".join(shown).decode().replace("\r\n", "\n")
