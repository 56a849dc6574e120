"""Faults for real: children that are killed at a chosen system call, or whose disk is full after a number of bytes."""

import contextlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable

WRITING_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
FAILED = 28


def in_child(action: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> int:
    """Run ``action`` in a forked process; returns its wait status: 0, FAILED << 8 for an OSError, or a signal."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            prepare()
            action()
            code = 0
        except OSError:
            code = FAILED
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def kill_at(call: int) -> Callable[[], None]:
    """In a child: SIGKILL just before the ``call``-th open for writing, fsync, rename, mkdir or removal."""

    def prepare() -> None:
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen > call:
                os.kill(os.getpid(), signal.SIGKILL)

        def audit(event: str, arguments: tuple[object, ...]) -> None:
            if event not in WRITING_EVENTS:
                return
            if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            count()

        sync = os.fsync

        def counted_sync(descriptor: int) -> None:
            count()
            sync(descriptor)

        os.fsync = counted_sync
        sys.addaudithook(audit)

    return prepare


def file_limit(num_bytes: int, *, fatal: bool) -> Callable[[], None]:
    """In a child: no file grows beyond so many bytes; a write that would fails, or kills the process half-way."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    return prepare
