"""Small program between us and a server: drop the account, ask for the death signal, become the server.

Called by path as ``exec_child.py PARENT_PID SIGNAL UID GID PROGRAM ARGUMENT...`` (-1 keeps the account). A program
and not ``preexec_fn``, because Python code between fork and exec may deadlock in a parent with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replace this process by PROGRAM; end silently when the parent is gone already."""
    parent, death_signal, uid, gid = (int(word) for word in sys.argv[1:5])
    argv = sys.argv[5:]
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None
    if gid >= 0:
        os.setgroups([])
        os.setgid(gid)
    if uid >= 0:
        os.setuid(uid)
    # After the account: a change of credentials clears the death signal.
    if prctl is not None and prctl(_PR_SET_PDEATHSIG, death_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call above; then no signal will ever come.
    if os.getppid() != parent:
        sys.exit(1)
    # A shell ignores SIGINT in what it starts behind `&`, and what is ignored is inherited: a stop would be unheard.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"cannot start {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
