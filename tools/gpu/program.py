"""Programs that a piece starts: in the repository, within the time that is left."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpu.pieces import Context, IncompleteError

ROOT = Path(__file__).resolve().parents[2]
_LINES = 12  # of a failed program's output that a piece repeats


def run_program(
    command: Sequence[str], context: Context, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in the repository's root to its end.

    Args:
        command: its words.
        context: tells how long it may take.
        variables: of the environment, on top of this process's.

    Raises:
        IncompleteError: it was still running when the time was up.
    """
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(variables or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=60 * context.left,
        )
    except subprocess.TimeoutExpired:
        raise IncompleteError("no time was left; give it more --minutes") from None


def tail(done: subprocess.CompletedProcess[str]) -> str:
    """The exit status and the last lines of a program's output."""
    lines = (done.stdout + done.stderr).strip().splitlines()[-_LINES:]
    return f"exit status {done.returncode}: " + " | ".join(lines)
