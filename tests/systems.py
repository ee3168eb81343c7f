"""What one system has and another lacks: marks of the tests that need it, and its equal where there is one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

POSIX = os.name == "posix"
FORKS = sys.platform == "linux"  # macOS has fork, but its libraries do not survive it
WORKERS = "fork" if FORKS else "spawn"  # the start method of worker processes that is the fastest

needs_fork = pytest.mark.skipif(not FORKS, reason="needs a fork that libraries survive")
needs_posix = pytest.mark.skipif(not POSIX, reason="needs POSIX: modes of files, limits of a process, signals")
needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")

FORK = pytest.param("fork", marks=needs_fork)
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # either ends a process at once, sent by os.kill
KILLED = -KILL if POSIX else int(KILL)  # the exit code of a process that was sent it


def link(path: Path, target: Path | str) -> None:
    """Make ``path`` a symbolic link, which Windows allows to some users alone."""
    try:
        path.symlink_to(target)
    except (OSError, NotImplementedError):
        if POSIX:
            raise
        pytest.skip("needs the right to make symbolic links")


def pipe(path: Path) -> None:
    """Make ``path`` a named pipe: whoever opens it waits for its writer."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(path)


def endless() -> Path:
    """A device file that never ends."""
    path = Path("/dev/zero")
    if not path.exists():
        pytest.skip("needs /dev/zero")
    return path
