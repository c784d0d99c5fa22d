"""Becomes another program that does not outlive the one that started it.

``python -I -S child.py PARENT SIGNAL UID GID PROGRAM ARGUMENT…``: whatever ends PARENT, SIGKILL included,
sends SIGNAL to the program. With UID and GID (``-`` leaves both as they are) it runs as that account.

A file of its own, and not a function between fork and exec, because nothing that takes a lock is safe there
in a process with threads.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Change the account, ask the kernel for the signal, and become the program."""
    parent, death_signal, uid, gid, *command = sys.argv[1:]
    if uid != "-":
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    # After setuid, which would take the request back.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death_signal))
        if os.getppid() != int(parent):
            sys.exit("the parent has ended already")
    os.execvp(command[0], command)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
