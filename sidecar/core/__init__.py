"""Floor 1: what is declared, what is observed, and what follows. Pure functions and frozen structs.

Time, processes, devices and the network reach this floor as values; it imports no clock, no loop, no operating system.
"""
