"""Floor 2: how things are done. Reads manifests, loads plugins, runs processes, probes devices, talks to upstreams.

It decides no policy: when to start, stop or refuse is settled above.
"""
