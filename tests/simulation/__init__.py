"""The real control floor on a virtual clock, with virtual processes, devices, disks and callers, and much trouble.

`python -m tests.simulation --seeds 100` runs it for long; a failing seed is printed and replays. Nothing here sleeps,
starts a process or touches a file: an hour of the machine's life takes some milliseconds.
"""
