"""What the kernel says of the other side, on real sockets."""

from __future__ import annotations

import socket

from sidecar.mechanism.acknowledged import bytes_acknowledged


def test_what_the_other_side_has_got_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as sock, listener.accept()[0] as other:
            before = bytes_acknowledged(sock)
            assert before is not None
            sock.sendall(b"x" * 100)
            assert len(other.recv(100, socket.MSG_WAITALL)) == 100
            assert bytes_acknowledged(sock) == before + 100
        assert bytes_acknowledged(sock) is None


def test_where_there_is_no_tcp_nothing_is_known() -> None:
    assert bytes_acknowledged(None) is None
    one, other = socket.socketpair()
    with one, other:
        assert bytes_acknowledged(one) is None
