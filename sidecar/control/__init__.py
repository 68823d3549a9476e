"""Floor 3: observe, plan, act. Who is started and stopped, who waits, which generation of plugins is in force.

It speaks no HTTP; surfaces ask it for leases and tell it when they are done.
"""
