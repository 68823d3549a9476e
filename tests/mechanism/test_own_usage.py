"""What this process takes, against what it is known to take."""

from __future__ import annotations

import os
import threading
import time

from sidecar.mechanism.own_usage import own_usage


def test_memory_files_and_threads_are_counted() -> None:
    before = own_usage()
    held = b"x" * (64 * 2**20)
    ends = os.pipe()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        after = own_usage()
    finally:
        stop.set()
        thread.join()
        for end in ends:
            os.close(end)
    assert after.resident - before.resident > len(held) // 2
    assert after.virtual >= after.resident
    assert after.files - before.files == 2
    assert after.threads - before.threads == 1
    assert after.most_files is None or after.most_files >= after.files


def test_it_started_a_while_ago_and_has_worked_since() -> None:
    used = own_usage()
    assert used.cpu_s > 0
    assert time.time() - 24 * 3600 < used.started_unix <= time.time()
