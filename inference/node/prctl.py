"""Linux's prctl(2): ties the life of a process to its parent's."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def die_with_parent(number: int = signal.SIGKILL, parent_pid: int | None = None) -> None:
    """Ask the kernel for a signal when the parent ends; if it has ended already, end now."""
    _prctl(PR_SET_PDEATHSIG, number)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def become_subreaper() -> None:
    """Orphaned descendants become this process's children."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
