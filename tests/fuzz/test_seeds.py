"""What a fuzzer found once, and what is near it, breaks no law any more."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.laws import LAWS

SEEDS = Path(__file__).parent / "seeds"


def test_every_law_has_seeds() -> None:
    assert {path.name for path in SEEDS.iterdir()} == set(LAWS)


@pytest.mark.parametrize("law", sorted(LAWS))
def test_a_law_holds_for_its_seeds_and_for_what_is_near_them(law: str) -> None:
    random = Random(law)  # noqa: S311 - the same inputs at every run
    for path in sorted((SEEDS / law).iterdir()):
        seed = path.read_bytes()
        LAWS[law](seed)
        for _ in range(10):
            LAWS[law](_near(seed, random))


def _near(seed: bytes, random: Random) -> bytes:
    """The seed with a part of it removed, repeated, or overwritten."""
    start, end = sorted(random.randrange(len(seed) + 1) for _ in range(2))
    part = random.choice(
        [b"", seed[start:end] * 2, random.randbytes(2), random.choice([b'"', b"\\", b"{", b"\r\n", b"]"])]
    )
    return seed[:start] + part + seed[random.choice([start, end]) :]
