"""What a merge would do: two directories of manifests, without a machine and with one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from sidecar.control.review import Side, review
from sidecar.control.trial import Machine
from sidecar.core.nodes import EVERY_NODE, Node
from sidecar.core.observed import Device, Server
from sidecar.core.review import Change, FieldChange, Review
from sidecar.core.whatif import at_ease
from sidecar.mechanism.loader import load
from sidecar.mechanism.placeholders import ForeignEnvironment
from sidecar.mechanism.source import read
from tests.core.build import NOW, gpu, observe, server
from tests.core.build import model as built
from tests.core.build import variant as way
from tests.support import model, write

DOOR = """
from plugin_sdk import Principal, Request, auth
from words import WORD

@auth
def door(request: Request) -> Principal:
    return Principal(WORD)
"""
DOORS = {"plugins/door.py": DOOR, "plugins/words.py": 'WORD = "a"\n'}
SETTINGS = "[sidecar]\nheadroom_mb = 0\n"


def on_gpu(name: str, mb: int, lines: str = "", variant: str = "") -> str:
    """A model on one GPU."""
    return model(name, lines, variant).replace('"cpu"', '"nvidia"').replace("= 100", f"= {mb}")


def reviewed(
    folder: Path,
    before: Mapping[str, str],
    after: Mapping[str, str],
    *seen: Device | Server,
    node: Node = EVERY_NODE,
    running: bool = True,
) -> Review:
    """The review of two directories, on a machine if one was seen."""
    machine = None
    if seen:
        machine = Machine(observed=at_ease(observe(*seen), NOW), running=running, now=NOW)
    first, second = read(write(folder / "a", before)), read(write(folder / "b", after))
    old = load(first, ForeignEnvironment(), node=node)
    new = load(second, ForeignEnvironment(), old.declaration, node=node)
    return review(Side(name="a", snapshot=first, loaded=old), Side(name="b", snapshot=second, loaded=new), machine)


def only(found: Review) -> Change:
    (change,) = found.changes
    return change


def card(free: int, total: int = 1000) -> Device:
    return msgspec.structs.replace(gpu("GPU-a", free, total=total), device_class="nvidia")


def up(name: str, mb: int, idle_s: float = 0) -> Server:
    """A server on the GPU, of the default variant, that another machine has told of."""
    return server(name, built(way(mb, "nvidia", name="default")), "GPU-a", use=mb, idle_s=idle_s, fingerprint="there")


# --- what is declared ---------------------------------------------------------------------------------------------


def test_the_same_is_no_op_however_it_is_written(tmp_path: Path) -> None:
    before = {"m.toml": model("m"), "n.toml": model("n"), "s.toml": SETTINGS}
    after = {"all.toml": "# in one file\n" + model("n", "priority = 0") + model("m"), "s.toml": SETTINGS}
    found = reviewed(tmp_path, before, after)
    assert (found.no_op, found.changes, found.interrupts) == (True, (), ())
    assert found.same_meaning == ("all.toml", "m.toml", "n.toml")


def test_what_can_be_taken_over_as_it_runs_restarts_nothing(tmp_path: Path) -> None:
    after = {"m.toml": model("m", 'priority = 3\naliases = ["x"]', 'stop_timeout = "1s"')}
    change = only(reviewed(tmp_path, {"m.toml": model("m")}, after))
    assert (change.verb, change.impact, change.why) == ("changed", "none", "taken over as it runs")
    assert change.fields == (
        FieldChange(key="aliases", after='["x"]'),
        FieldChange(key="priority", after="3"),
        FieldChange(key="variants.default.stop_timeout", after='"1s"'),
    )


def test_what_a_server_was_started_with_restarts_it(tmp_path: Path) -> None:
    command = model("m").replace('"serve"', '"serve", "--ctx", "4096"')
    found = reviewed(tmp_path, {"m.toml": command}, {"m.toml": command.replace("4096", "8192")})
    change = only(found)
    assert (change.impact, change.why) == ("restart", "restarts, if it runs: variant default was changed")
    told = FieldChange(key="variants.default.command", before='[…, "4096", …]', after='[…, "8192", …]')
    assert (change.fields, found.interrupts) == ((told,), ("m",))


def test_models_come_go_and_are_renamed(tmp_path: Path) -> None:
    before = {"old.toml": model("old"), "gone.toml": model("gone").replace("serve", "other")}
    after = {"new.toml": model("new"), "auto.toml": model("auto", "auto_start = true").replace("serve", "third")}
    found = reviewed(tmp_path, before, after)
    assert [(one.name, one.verb, one.was, one.impact, one.file) for one in found.changes] == [
        ("auto", "added", "", "start", "auto.toml"),
        ("gone", "removed", "", "stop", "gone.toml"),
        ("new", "renamed", "old", "none", "new.toml"),
    ]
    assert found.interrupts == ("gone",)


def test_variants_are_told_by_name_and_by_their_order(tmp_path: Path) -> None:
    def ways(*names: str) -> dict[str, str]:
        tables = [f'{{ name = "{name}", url = "http://{name}:1" }}' for name in names]
        return {"m.toml": f'[models.m]\nmode = "chat"\nvariants = [{", ".join(tables)}]\n'}

    change = only(reviewed(tmp_path, ways("a", "b", "c"), ways("c", "b", "d")))
    assert change.fields == (
        FieldChange(key="variants.a", before='url = "http://a:1"'),
        FieldChange(key="variants.d", after='url = "http://d:1"'),
        FieldChange(key="order of variants", before="b, c", after="c, b"),
    )
    assert change.impact == "none"


def test_models_that_move_to_other_nodes_go_and_those_that_move_here_come(tmp_path: Path) -> None:
    h200, a100 = 'nodes = { gpu = "h200" }', 'nodes = { gpu = "a100" }'
    before = {"m.toml": model("m", h200), "n.toml": model("n", a100).replace("serve", "n")}
    after = {"m.toml": model("m", a100), "n.toml": model("n", h200).replace("serve", "n")}
    found = reviewed(tmp_path, before, after, node=Node({"gpu": "h200"}))
    assert [(one.name, one.verb, one.why) for one in found.changes] == [
        ("m", "moved_away", "for other nodes: gpu = a100"),
        ("n", "moved_here", "starts on demand"),
    ]
    everywhere = reviewed(tmp_path, before, after)
    assert [(one.name, one.impact) for one in everywhere.changes] == [("m", "none"), ("n", "none")]


def test_plugins_are_told_with_whom_they_concern_and_without_what_they_hold(tmp_path: Path) -> None:
    def limits(number: int) -> dict[str, str]:
        config = f"config = {{ requests_per_minute = {number} }}"
        table = f'[plugins.slow]\nimport = "sidecar.builtin.limits:Limits"\n{config}\n'
        return {**DOORS, "p.toml": table, "m.toml": model("m", 'chain = ["slow"]'), "n.toml": model("n")}

    change = only(reviewed(tmp_path, limits(1), limits(2)))
    assert (change.section, change.name, change.touches) == ("plugins", "slow", ("m",))
    assert change.fields == (FieldChange(key="config.requests_per_minute"),)


def test_code_that_a_plugin_imports_is_its_own(tmp_path: Path) -> None:
    before = {
        **DOORS,
        "s.toml": '[sidecar]\nchain = ["door"]\n',
        "m.toml": model("m"),
        "n.toml": model("n", "chain = []"),
    }
    change = only(reviewed(tmp_path, before, {**before, "plugins/words.py": 'WORD = "b"\n'}))
    assert (change.name, change.fields) == ("door", (FieldChange(key="code of plugins/words"),))
    assert (change.touches, change.impact) == (("m",), "none")


def test_settings_and_devices_are_told_with_whom_they_concern(tmp_path: Path) -> None:
    def files(headroom: int, index: int, listen: str) -> dict[str, str]:
        settings = f'[sidecar]\nheadroom_mb = {headroom}\nlisten = "127.0.0.1:{listen}"\n'
        device = f"[devices.big]\nmatch = {{ index = {index} }}\n"
        return {
            "s.toml": settings,
            "d.toml": device,
            "m.toml": on_gpu("m", 1).replace("nvidia", "big"),
            "n.toml": model("n"),
        }

    found = reviewed(tmp_path, files(1, 0, "1"), files(2, 1, "2"))
    assert [(one.section, one.name, one.touches) for one in found.changes] == [
        ("sidecar", "listen", ()),
        ("sidecar", "headroom_mb", ("m", "n")),
        ("devices", "big", ("m",)),
    ]
    assert found.changes[0].why == "takes effect when the sidecar is started anew"


def test_what_is_faulty_stays_as_it_was_and_only_new_problems_are_new(tmp_path: Path) -> None:
    bad = model("bad").replace('"chat"', '"chta"')
    before = {"m.toml": model("m"), "bad.toml": bad}
    after = {"m.toml": model("m").replace("= 100", "= 0"), "bad.toml": "\n\n" + bad}
    found = reviewed(tmp_path, before, after)
    assert [(fault.problem.path, fault.new) for fault in found.faults] == [
        ("models.bad.mode", False),
        ("models.m.variants[0].memory_mb", True),
    ]
    assert (found.kept, found.changes, found.no_op) == (("m",), (), False)


def test_an_emptied_source_is_a_mistake_and_removes_nothing(tmp_path: Path) -> None:
    found = reviewed(tmp_path, {"m.toml": model("m")}, {"s.toml": SETTINGS})
    assert [fault.problem.message.partition(";")[0] for fault in found.faults] == [
        "the source declares no model any more"
    ]
    assert found.interrupts == ()


def test_secrets_and_variables_are_told_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", "sk-very-secret")
    monkeypatch.setenv("TWO", "sk-more-secret")

    def files(name: str) -> dict[str, str]:
        return {
            "m.toml": '[models.m]\nmode = "chat"\n'
            f'variants = [{{ url = "http://h:1", api_key = {{ env = "{name}" }} }}]\n',
            "n.toml": model("n", variant=f'env = {{ TOKEN = "{{env.{name}}}" }}'),
        }

    found = reviewed(tmp_path, files("ONE"), files("TWO"))
    told = msgspec.json.encode(found, enc_hook=str).decode()
    assert "-secret" not in told
    assert found.changes[0].fields == (
        FieldChange(key="variants.default.api_key", before='{ env = "ONE" }', after='{ env = "TWO" }'),
    )


def test_variables_are_told_one_by_one_and_a_key_that_stands_among_them_is_not(tmp_path: Path) -> None:
    def files(env: str) -> dict[str, str]:
        return {"m.toml": model("m", variant=f"env = {{ SAME = '1', {env} }}")}

    before = files("OLD = 'x', HF_TOKEN = 'hf-a', API_KEY = 'sk-a', A_TOKEN = '{env.A}'")
    after = files("NEW = 'y', HF_TOKEN = 'hf-b', API_KEY = '{env.KEY}', A_TOKEN = '{env.B}'")
    (change,) = reviewed(tmp_path, before, after).changes
    assert change.fields == (
        FieldChange(key="variants.default.env.OLD", before='"x"'),
        FieldChange(key="variants.default.env.HF_TOKEN"),
        FieldChange(key="variants.default.env.API_KEY"),
        FieldChange(key="variants.default.env.A_TOKEN", before='"{env.A}"', after='"{env.B}"'),
        FieldChange(key="variants.default.env.NEW", after='"y"'),
    )


# --- on a machine -------------------------------------------------------------------------------------------------


def test_what_runs_there_restarts_moves_aside_or_stays(tmp_path: Path) -> None:
    before = {
        "s.toml": SETTINGS,
        "a.toml": on_gpu("a", 300),
        "b.toml": on_gpu("b", 300).replace("serve", "b"),
        "c.toml": on_gpu("c", 200).replace("serve", "c"),
    }
    after = {
        **{name: text for name, text in before.items() if name not in ("b.toml", "c.toml")},
        "a.toml": on_gpu("a", 350),
        "c.toml": on_gpu("called", 200).replace("serve", "c"),
        "new.toml": on_gpu("new", 400, "auto_start = true").replace("serve", "n"),
    }
    found = reviewed(tmp_path, before, after, card(200), up("a", 300), up("b", 300), up("c", 200))
    assert [(one.kind, one.model, one.was, one.devices) for one in found.effects] == [
        ("restart", "a", "", ("nvidia:0",)),
        ("stop", "b", "", ("nvidia:0",)),
        ("rename", "called", "c", ("nvidia:0",)),
        ("start", "new", "", ("nvidia:0",)),
    ]
    assert (found.planned, found.at_rest, found.interrupts) == (True, True, ("a", "b"))
    assert [(one.model, one.before and one.before.verdict, one.after.verdict) for one in found.on_request] == [
        ("new", None, "serves")
    ]


def test_a_model_that_has_grown_too_large_says_whom_it_would_evict(tmp_path: Path) -> None:
    before = {"s.toml": SETTINGS, "a.toml": on_gpu("a", 400), "b.toml": on_gpu("b", 500).replace("serve", "b")}
    found = reviewed(tmp_path, before, {**before, "a.toml": on_gpu("a", 600)}, card(100), up("a", 400), up("b", 500))
    (effect,) = found.effects
    assert (effect.kind, effect.model) == ("stop", "a")
    assert "variant default was changed; it does not come back: WaitingForMemory" in effect.why
    (asked,) = found.on_request
    assert asked.before is not None
    assert (asked.model, asked.before.verdict, asked.after.verdict, asked.after.victims) == (
        "a",
        "serves",
        "evicts",
        ("b",),
    )
    hopeless = reviewed(
        tmp_path, before, {**before, "a.toml": on_gpu("a", 6000)}, card(100), up("a", 400), up("b", 500)
    )
    assert hopeless.on_request[0].after.verdict == "refused"


def test_less_headroom_or_another_cap_shows_in_what_others_get(tmp_path: Path) -> None:
    before = {"s.toml": SETTINGS, "a.toml": on_gpu("a", 900)}
    found = reviewed(tmp_path, before, {**before, "s.toml": "[sidecar]\nheadroom_mb = 200\n"}, card(1000))
    assert [(one.model, one.after.verdict) for one in found.on_request] == [("a", "refused")]
    assert found.effects == ()


def test_where_no_sidecar_ran_what_starts_by_itself_is_up_before(tmp_path: Path) -> None:
    before = {"s.toml": SETTINGS, "a.toml": on_gpu("a", 900, "auto_start = true")}
    after = {**before, "a.toml": on_gpu("a", 800, "auto_start = true")}
    fresh = reviewed(tmp_path, before, after, card(1000), running=False)
    assert [(one.kind, one.model) for one in fresh.effects] == [("restart", "a")]
    stopped_by_hand = reviewed(tmp_path, before, after, card(1000))
    assert [(one.kind, one.model) for one in stopped_by_hand.effects] == [("start", "a")]


def test_servers_that_others_run_count_as_healthy_until_somebody_has_looked(tmp_path: Path) -> None:
    url = '[models.m]\nmode = "chat"\nvariants = [{ url = "http://h:1" }]\n'
    found = reviewed(tmp_path, {"s.toml": SETTINGS}, {"s.toml": SETTINGS, "m.toml": url}, card(1000))
    assert [(one.model, one.after.verdict) for one in found.on_request] == [("m", "serves")]
