"""Processes of the product without the time of a start: forked from a process that has imported it already.

A start of an interpreter with torch or fastapi takes seconds of a core, and the tests start hundreds. `ForkedPopen` is
subprocess.Popen for commands of the product; its process is a child of the caller, has what exec would have given
it (descriptors, session, folder, environment, command line), and runs the command's module as `__main__`.

What differs from a start: the modules are imported already, hashes of strings are the same in all processes of a run,
/proc/PID/cmdline is that of the fork server, and objects are not freed at the end. Tests about imports, the
interpreter's flags, variables that are read at import, memory, or the time of a start use subprocess.
"""
