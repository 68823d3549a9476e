"""A row for each request, in SQLite or PostgreSQL: who asked which model for what, how it ended, and what it cost.

Rows are written by a thread of the plugin's own, some at a time, so that no request ever waits for a disk or a server.
Of what was recorded, at most the last second is lost when the program is killed.
"""

from sidecar.builtin.usage.plugin import Usage
from sidecar.builtin.usage.settings import Price, Settings, Tier
from sidecar.builtin.usage.sqlite import read

__all__ = ["Price", "Settings", "Tier", "Usage", "read"]
