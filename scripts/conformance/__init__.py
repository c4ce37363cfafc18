"""`scripts/posix`: suites that others wrote, run on mounts and on a local directory.

cases      what a suite says of each of its cases, and running a program
suites     the suites
programs   whole programs, with servers killed under them
grounds    a cluster, its mounts, and the local directory beside them
known      what is known not to pass, and why
__main__   the command line: runs, compares, prints
"""
