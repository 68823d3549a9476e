"""Finds model servers that run on this machine already, and offers manifests for them. Nothing of theirs is changed.

`sockets` knows who listens, `asking` asks them by HTTP, `processes` reads how they were started and what they hold, and
`offers` turns that into manifests, with a report of what was not understood.
"""
