"""The memory of a device is told by holder, and adds up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.holders import Holders, Holding, holders
from sidecar.core.ledger import Ledger
from sidecar.core.observed import Device, Server
from tests.core.build import GPU0, gpu, laws, model, server

A, B = model(300), model(200)


def held(device: Device, *servers: Server) -> Holders | None:
    return holders(Ledger((device,), servers, {}, 0), device.id, servers)


def test_what_is_taken_reserved_free_and_others_is_told_apart() -> None:
    assert held(gpu(GPU0, 400), server("a", A, use=250), server("b", B, use=50)) == Holders(
        total_mb=1000,
        ours_mb=300,
        foreign_mb=300,
        reserved_mb=200,
        free_mb=200,
        told=True,
        servers=(
            Holding(model="a", reserved_mb=300, used_mb=250),
            Holding(model="b", reserved_mb=200, used_mb=50),
        ),
    )


def test_where_a_driver_does_not_tell_ours_from_others_that_is_told_and_nothing_counts_twice() -> None:
    found = held(gpu(GPU0, 400), server("a", A))
    assert found is not None
    assert (found.told, found.ours_mb, found.foreign_mb, found.reserved_mb, found.free_mb) == (False, 0, 600, 0, 400)
    fresh = held(gpu(GPU0, 950), server("a", A))
    assert fresh is not None
    assert (fresh.foreign_mb, fresh.reserved_mb, fresh.free_mb) == (50, 250, 700)


def test_a_device_that_cannot_be_read_or_is_gone_has_no_holders() -> None:
    assert held(gpu(GPU0, 0, problem="lost")) is None
    assert holders(Ledger((), (), {}, 0), GPU0, ()) is None


@laws
@given(free=st.integers(0, 1000), used=st.lists(st.none() | st.integers(0, 900), max_size=4))
def test_it_adds_up_whatever_is_read(free: int, used: list[int | None]) -> None:
    found = held(gpu(GPU0, free), *(server(f"m{n}", A, use=amount) for n, amount in enumerate(used)))
    assert found is not None
    parts = (found.ours_mb, found.foreign_mb, found.reserved_mb, found.free_mb)
    assert min(parts) >= 0
    assert sum(parts) == found.total_mb
