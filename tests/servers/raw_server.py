r"""Answers each connection's first bytes with the bytes of its first argument (Python escapes), then closes.

`raw_server.py 'HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf'`. Prints `listening PORT` once it does.
"""

from __future__ import annotations

import socket
import sys


def main() -> None:
    """Serve until killed."""
    answer = sys.argv[1].encode("latin-1").decode("unicode_escape").encode("latin-1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print("listening", listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)


if __name__ == "__main__":
    main()
