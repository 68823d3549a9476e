"""One sidecar to a state directory: the second refuses and names the first."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class StateDirError(Exception):
    """The state directory cannot be used."""


class StateDir:
    """The directory that holds logs and state, locked for as long as this process lives (flock ends with it)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = (path / "lock").open("a+", encoding="ascii")
        except OSError as error:
            raise StateDirError(f"state_dir {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "?"
            self._file.close()
            raise StateDirError(f"state_dir {path} is in use by another sidecar (pid {holder})") from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(str(os.getpid()))
        self._file.flush()

    @property
    def logs(self) -> Path:
        """Where servers' output goes."""
        return self.path / "logs"

    def close(self) -> None:
        """Give the lock back."""
        self._file.close()
