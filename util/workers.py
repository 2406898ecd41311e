"""Worker processes end when the process that started them is killed, and do not destroy its objects.

Otherwise they would wait forever, for work or for threads of that process.
"""

import contextlib
import ctypes
import gc
import os
import signal
import threading

PR_SET_PDEATHSIG = 1  # of prctl(2), Linux

_forking: tuple[int, int] | None = None  # process and thread whose forks end with the process


def exit_with_parent(parent: int) -> None:
    """Called in a worker: ends it when its parent is killed. Ctrl-C is left to the parent."""
    # The garbage collector ignores the objects of the parent. The destructor of a thread pool, such as onnxruntime's,
    # would wait for threads that a fork does not copy.
    gc.freeze()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != parent:  # it was killed before the call of prctl
        os._exit(1)


@contextlib.contextmanager
def forks_exit_with_this_process():
    """For libraries that fork without a hook: Dataset.map starts a pool and a manager process."""
    global _forking
    _forking = os.getpid(), threading.get_ident()
    try:
        yield
    finally:
        _forking = None


def _after_fork_in_child() -> None:
    global _forking
    if _forking is None:
        return
    (parent, thread), _forking = _forking, None
    # The signal comes already when the thread that forked ends. Pools replace dead workers in a thread that ends before
    # them; killed while it holds the lock of the queue, such a worker would block the end of the pool.
    if threading.get_ident() == thread:  # unchanged by the fork
        exit_with_parent(parent)


os.register_at_fork(after_in_child=_after_fork_in_child)
