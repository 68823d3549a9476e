"""What is remembered of variants: peaks, load times, and what follows from them."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.control.measurements import MOST_ENTRIES, Measurements, recipe, recorded
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.observed import Measured
from sidecar.core.suggest import suggestion

GPU = Variant(name="gpu", required_devices=("nvidia",), memory_mb=9000, command=("serve", "{port}"))
BOTH = Variant(
    name="both", required_devices=("nvidia", "nvidia", "cpu"), memory_mb={"nvidia": 4000, "cpu": 500}, command=("s",)
)


def declared(*variants: Variant, model: str = "m") -> Declaration:
    """One model with these variants."""
    return Declaration(models={model: Model(variants=variants, mode="chat")})


def changed(variant: Variant, **fields: object) -> Variant:
    """The variant with other fields."""
    return msgspec.structs.replace(variant, **fields)


def peaks(found: Measurements) -> dict[str, dict[str, int]]:
    """The peaks by variant."""
    return {measured.variant: measured.peak_mb for measured in found.all()}


# --- observing ----------------------------------------------------------------------------------------------------


def test_the_highest_use_is_remembered() -> None:
    found = Measurements(None)
    found.declare(declared(GPU))
    for amount in (100, 9500, 200):
        found.observed("m", GPU, ("GPU-1",), {"GPU-1": amount, "GPU-2": 99999})
    (measured,) = found.all()
    assert measured == Measured(
        model="m",
        variant="gpu",
        fingerprint=GPU.fingerprint(),
        declared_mb={"nvidia": 9000},
        peak_mb={"nvidia": 9500},
    )


def test_of_a_requirement_that_stands_twice_the_higher_use_counts() -> None:
    found = Measurements(None)
    found.declare(declared(BOTH))
    found.observed("m", BOTH, ("GPU-1", "GPU-2", "cpu"), {"GPU-1": 3000, "GPU-2": 4500, "cpu": 7})
    assert peaks(found) == {"both": {"nvidia": 4500, "cpu": 7}}


def test_what_could_not_be_measured_is_left_out() -> None:
    found = Measurements(None)
    found.declare(declared(BOTH, GPU))
    found.observed("m", BOTH, ("GPU-1", "GPU-2", "cpu"), {"cpu": 7})
    found.observed("m", GPU, ("GPU-1",), {})
    assert peaks(found) == {"both": {"cpu": 7}}


def test_models_and_variants_are_told_apart() -> None:
    found = Measurements(None)
    found.declare(
        Declaration(models={**declared(GPU, BOTH).models, **declared(GPU, model="other").models}),
    )
    found.observed("m", GPU, ("a",), {"a": 1})
    found.observed("other", GPU, ("a",), {"a": 2})
    found.observed("m", BOTH, ("a", "b", "c"), {"c": 3})
    assert [(one.model, one.variant, one.peak_mb) for one in found.all()] == [
        ("m", "gpu", {"nvidia": 1}),
        ("m", "both", {"cpu": 3}),
        ("other", "gpu", {"nvidia": 2}),
    ]


def test_load_times_are_averaged_and_the_first_counts_whole() -> None:
    found = Measurements(None)
    assert found.load_s("m", GPU) is None
    found.loaded("m", GPU, 10.0)
    assert found.load_s("m", GPU) == 10.0
    found.loaded("m", GPU, 20.0)
    assert found.load_s("m", GPU) == pytest.approx(13.0)


def test_a_load_time_that_is_not_known_is_guessed_from_the_memory() -> None:
    found = Measurements(None)
    assert found.load_estimate_s("m", GPU) == pytest.approx(11.0)
    assert found.load_estimate_s("m", BOTH) == pytest.approx(10.5)
    assert found.load_estimate_s("m", Variant(url="http://127.0.0.1:1")) == 2.0
    found.loaded("m", GPU, 3.0)
    assert found.load_estimate_s("m", GPU) == 3.0


# --- what is declared ---------------------------------------------------------------------------------------------


def test_a_changed_memory_keeps_the_peak_and_is_reported_with_it() -> None:
    found = Measurements(None)
    found.declare(declared(GPU))
    found.observed("m", GPU, ("a",), {"a": 9500})
    raised = changed(GPU, memory_mb={"nvidia": 10450}, name="renamed")
    found.declare(declared(raised))
    (measured,) = found.all()
    assert (measured.variant, measured.declared_mb, measured.peak_mb) == (
        "renamed",
        {"nvidia": 10450},
        {"nvidia": 9500},
    )
    assert measured.fingerprint == raised.fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        changed(GPU, command=("serve", "--ctx", "1", "{port}")),
        changed(GPU, env={"A": "1"}),
        changed(GPU, cwd="sub"),
        changed(GPU, required_devices=("nvidia:0",)),
    ],
)
def test_what_runs_otherwise_is_measured_anew(other: Variant) -> None:
    found = Measurements(None)
    found.observed("m", GPU, ("a",), {"a": 9500})
    found.loaded("m", GPU, 5)
    found.declare(declared(other))
    assert found.all() == ()
    assert found.load_s("m", other) is None
    assert recipe(other) != recipe(GPU)


def test_a_server_that_still_runs_as_was_declared_before_is_not_taken_for_the_new_one() -> None:
    found = Measurements(None)
    new = changed(GPU, command=("other", "{port}"))
    found.declare(declared(new))
    found.observed("m", GPU, ("a",), {"a": 9500})
    assert found.all() == ()
    found.observed("m", new, ("a",), {"a": 1})
    assert peaks(found) == {"gpu": {"nvidia": 1}}


async def test_what_is_not_declared_for_a_while_is_hidden_and_not_forgotten(tmp_path: Path) -> None:
    found = Measurements(tmp_path)
    found.declare(declared(GPU))
    found.observed("m", GPU, ("a",), {"a": 9500})
    found.loaded("m", GPU, 4.0)
    found.declare(declared(GPU, model="of another branch"))
    assert found.all() == ()
    await found.save()
    for back in (found, Measurements(tmp_path)):
        back.declare(declared(GPU))
        assert peaks(back) == {"gpu": {"nvidia": 9500}}
        assert back.load_s("m", GPU) == 4.0


async def test_a_renamed_model_keeps_what_is_remembered_of_it(tmp_path: Path) -> None:
    found = Measurements(tmp_path)
    found.declare(declared(GPU, BOTH))
    found.observed("m", GPU, ("a",), {"a": 9500})
    found.loaded("m", BOTH, 4.0)
    found.renamed("m", "new")
    found.declare(declared(GPU, BOTH, model="new"))
    assert [(one.model, one.variant, one.peak_mb, one.load_s) for one in found.all()] == [
        ("new", "gpu", {"nvidia": 9500}, 0.0),
        ("new", "both", {}, 4.0),
    ]
    await found.save()
    assert recorded(tmp_path, declared(GPU, BOTH)) == ()
    assert recorded(tmp_path, declared(GPU, BOTH, model="new")) == found.all()


def test_what_a_new_name_has_of_its_own_counts_too() -> None:
    found = Measurements(None)
    found.declare(declared(GPU, BOTH, model="new"))
    for model, amounts in (("m", {"a": 100, "b": 1, "c": 50}), ("new", {"a": 70, "b": 1, "c": 60})):
        found.observed(model, BOTH, ("a", "b", "c"), amounts)
    found.loaded("m", BOTH, 9.0)
    found.loaded("m", GPU, 9.0)
    found.loaded("new", BOTH, 5.0)
    found.renamed("m", "new")
    found.renamed("new", "new")
    found.renamed("nobody", "new")
    assert peaks(found) == {"gpu": {}, "both": {"nvidia": 100, "cpu": 60}}
    assert (found.load_s("new", BOTH), found.load_s("new", GPU)) == (5.0, 9.0)


def test_what_is_not_declared_makes_room_first() -> None:
    found = Measurements(None)
    found.declare(declared(GPU))
    found.loaded("m", GPU, 1.0)
    for number in range(MOST_ENTRIES + 5):
        found.loaded(str(number), GPU, 1.0)
    assert found.load_s("m", GPU) == 1.0
    assert found.load_s("5", GPU) is None
    assert found.load_s("6", GPU) == 1.0


def test_when_all_is_declared_the_oldest_makes_room() -> None:
    variants = [changed(GPU, name=str(number), env={"N": str(number)}) for number in range(MOST_ENTRIES + 1)]
    found = Measurements(None)
    found.declare(declared(*variants))
    for variant in variants:
        found.loaded("m", variant, 1.0)
    assert [one.variant for one in found.all()] == [variant.name for variant in variants[1:]]


def test_rounds_hash_nothing_that_was_hashed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [changed(GPU, name=str(number), env={"N": str(number)}) for number in range(50)]
    before = changed(GPU, command=("as", "before"))  # a server that still runs as nobody declares it any more
    found = Measurements(None)
    found.declare(declared(*variants))
    found.observed("m", before, ("a",), {"a": 1})
    hashed = []
    sha256 = hashlib.sha256

    def counted(content: bytes) -> object:
        hashed.append(content)
        return sha256(content)

    monkeypatch.setattr(hashlib, "sha256", counted)
    for amount in range(1, 20):
        for variant in (*variants, before):
            found.observed("m", variant, ("a",), {"a": amount})
            found.load_estimate_s("m", variant)
        assert len(found.all()) == 50
    assert hashed == []
    assert {one.fingerprint for one in found.all()} == {variant.fingerprint() for variant in variants}


def test_a_variant_of_another_declaration_is_never_taken_for_the_one_whose_place_in_memory_it_has() -> None:
    found = Measurements(None)
    for number in range(200):
        variant = changed(GPU, env={"N": str(number)})
        found.declare(declared(variant))
        found.observed("m", variant, ("a",), {"a": number + 1})
        assert peaks(found) == {"gpu": {"nvidia": number + 1}}
        del variant


def test_what_is_remembered_is_bounded() -> None:
    found = Measurements(None)
    for number in range(MOST_ENTRIES + 5):
        found.loaded(str(number), GPU, 1.0)
        found.loaded("kept", GPU, 1.0)
    assert found.load_s("0", GPU) is None
    assert found.load_s("kept", GPU) == 1.0
    assert found.load_s(str(MOST_ENTRIES + 4), GPU) == 1.0


# --- on disk ------------------------------------------------------------------------------------------------------


async def test_it_outlives_the_process(tmp_path: Path) -> None:
    first = Measurements(tmp_path)
    first.observed("m", GPU, ("a",), {"a": 9500})
    first.loaded("m", GPU, 12.5)
    await first.save()
    second = Measurements(tmp_path)
    second.declare(declared(GPU))
    (measured,) = second.all()
    assert (measured.peak_mb, measured.load_s) == ({"nvidia": 9500}, 12.5)
    assert recorded(tmp_path, declared(GPU)) == second.all()


async def test_nothing_is_written_unless_something_has_changed(tmp_path: Path) -> None:
    found = Measurements(tmp_path)
    found.declare(declared(GPU))
    await found.save()
    file = tmp_path / "measurements.json"
    assert not file.exists()
    found.observed("m", GPU, ("a",), {"a": 9500})
    await found.save()
    written = file.stat().st_ino
    found.observed("m", GPU, ("a",), {"a": 9500})
    found.declare(declared(GPU))
    await found.save()
    assert file.stat().st_ino == written
    found.declare(Declaration())
    await found.save()
    assert file.stat().st_ino == written


async def test_saves_at_once_leave_the_newest_on_disk(tmp_path: Path) -> None:
    found = Measurements(tmp_path)
    saves = []
    for amount in range(1, 30):
        found.observed("m", GPU, ("a",), {"a": amount})
        saves.append(asyncio.create_task(found.save()))
        await asyncio.sleep(0)
    await asyncio.gather(*saves)
    (measured,) = recorded(tmp_path, declared(GPU))
    assert measured.peak_mb == {"nvidia": 29}


@pytest.mark.parametrize(
    "content", [b'{"version": 1', b'{"version": 2, "variants": []}', b"\xff", b'{"version": 1, "variants": 3}', b""]
)
async def test_a_file_that_makes_no_sense_is_put_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "measurements.json"
    file.write_bytes(content)
    with pytest.raises(ValueError):
        recorded(tmp_path, Declaration())
    assert file.read_bytes() == content
    found = Measurements(tmp_path)
    assert (tmp_path / "measurements.json.unreadable").read_bytes() == content
    assert "measured anew" in caplog.text
    found.loaded("m", GPU, 1.0)
    await found.save()
    assert len(recorded(tmp_path, declared(GPU))) == 1


async def test_a_file_that_cannot_be_read_is_told_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "measurements.json").mkdir()
    assert Measurements(tmp_path).all() == ()
    assert "Is a directory" in caplog.text


async def test_a_save_that_fails_is_counted_told_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    found = Measurements(tmp_path)
    found.loaded("m", GPU, 1.0)
    obstacle = tmp_path / "measurements.json.new"
    obstacle.mkdir()
    await found.save()
    await found.save()
    assert found.failed == 2
    assert caplog.text.count("cannot be written") == 1
    obstacle.rmdir()
    await found.save()
    assert len(recorded(tmp_path, declared(GPU))) == 1
    obstacle.mkdir()
    found.loaded("m", GPU, 2.0)
    await found.save()
    assert caplog.text.count("cannot be written") == 2


# --- suggestions --------------------------------------------------------------------------------------------------


def measured(declared_mb: int, peak_mb: int) -> Measured:
    """One requirement."""
    peak = {"nvidia": peak_mb} if peak_mb else {}
    return Measured(model="m", variant="v", fingerprint="", declared_mb={"nvidia": declared_mb}, peak_mb=peak)


@pytest.mark.parametrize(
    ("declared_mb", "peak_mb", "expected"),
    [
        (9000, 0, None),  # never measured
        (9000, 9000, None),
        (9000, 9001, 9950),
        (100, 101, 150),
        (9500, 9600, 10600),  # in steps of 100 above 10,000
        (9000, 4500, None),  # not more than twice
        (9000, 4400, 5500),
        (2000, 800, None),  # what would come free is not worth a word
        (2100, 800, 1000),
        (50_000, 10_000, 12_500),
    ],
)
def test_suggestions(declared_mb: int, peak_mb: int, expected: int | None) -> None:
    assert suggestion(measured(declared_mb, peak_mb)) == ({"nvidia": expected} if expected else {})


@given(declared_mb=st.integers(1, 200_000), peak_mb=st.integers(0, 200_000))
def test_a_suggestion_holds_the_peak_with_room_to_spare_and_contents_itself(declared_mb: int, peak_mb: int) -> None:
    for amount in suggestion(measured(declared_mb, peak_mb)).values():
        assert amount * 10 >= peak_mb * 11
        if amount < declared_mb:
            assert amount * 4 >= peak_mb * 5
            assert declared_mb - amount > 1000
        assert suggestion(measured(amount, peak_mb)) == {}


def test_each_requirement_gets_its_own_suggestion() -> None:
    both = Measured(
        model="m",
        variant="v",
        fingerprint="",
        declared_mb={"nvidia": 100, "cpu": 9000, "tpu": 50},
        peak_mb={"nvidia": 200, "cpu": 1000, "tpu": 50},
    )
    assert suggestion(both) == {"nvidia": 250, "cpu": 1250}
