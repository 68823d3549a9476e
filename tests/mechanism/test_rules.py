"""What manifests must obey: every way to be wrong, with the place that is shown and the words that help.

Each case is a manifest in which one line, marked with a comment `# here`, is to blame.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.mechanism.rules import is_loopback, listen_address
from tests.support import declare, model, write

DEVICES = "known: amd, cpu, nvidia"
ONE_FILE = "all.toml"

PLUGIN = '[plugins.keys]\nimport = "sidecar.builtin.keys:StaticKeys"\n'
HASH = "sha256:" + "0" * 64


def variant(lines: str) -> str:
    """A model whose only variant is written by the test."""
    return f'[models.m]\nmode = "chat"\n[[models.m.variants]]\n{lines}'


def shared(lines: str) -> str:
    """A model on two servers that run already, with lines of its own."""
    return f'[models.m]\nmode = "chat"\nvariants = [{{ url = "http://a" }}, {{ url = "http://b" }}]\n{lines}'


def command(lines: str) -> str:
    """A model whose variant has a command, and lines of the test."""
    return variant('command = ["serve", "{port}"]\nrequired_devices = ["cpu"]\nmemory_mb = 1\n' + lines)


SIDECAR = [
    ('[sidecar] # here\nport = "1-2"', "sidecar.port", 'unknown key "port"; did you mean "ports"?', 2),
    (
        '[sidecar]\nports = "41000" # here',
        "sidecar.ports",
        "expected a port range such as \"41000-41999\", got '41000'",
    ),
    ('[sidecar]\nports = "42000-41000" # here', "sidecar.ports", "expected ports from 1 to 65535 in rising order"),
    ('[sidecar]\nports = "0-10" # here', "sidecar.ports", "expected ports from 1 to 65535"),
    ('[sidecar]\nports = "60000-70000" # here', "sidecar.ports", "expected ports from 1 to 65535"),
    ("[sidecar]\nports = 41000 # here", "sidecar.ports", "expected str, got int"),
    ('[sidecar]\nlisten = "8080" # here', "sidecar.listen", 'expected "HOST:PORT", such as "127.0.0.1:8080"'),
    ('[sidecar]\nlisten = ":8080" # here', "sidecar.listen", 'expected "HOST:PORT"'),
    ('[sidecar]\nlisten = "127.0.0.1:http" # here', "sidecar.listen", 'expected "HOST:PORT"'),
    ('[sidecar]\nlisten = "127.0.0.1:70000" # here', "sidecar.listen", 'expected "HOST:PORT"'),
    (
        '[sidecar]\nlisten = "0.0.0.0:8080" # here',
        "sidecar.listen",
        "it can be reached from other machines, and the default chain has no auth plugin: "
        "add one, listen on 127.0.0.1, or set insecure = true",
    ),
    ('[sidecar]\nlisten = "[::]:8080" # here', "sidecar.listen", "no auth plugin"),
    ('[sidecar]\nlisten = "gpu-box:8080" # here', "sidecar.listen", "no auth plugin"),
    ('[sidecar]\nchain = ["log"]\nlisten = "10.0.0.1:1" # here', "sidecar.listen", "no auth plugin"),
    ("[sidecar]\nheadroom_mb = -1 # here", "sidecar.headroom_mb", "expected 0 or more"),
    ('[sidecar]\ncors_origins = ["*", "https://a/"] # here', "sidecar.cors_origins[1]", 'expected "*" or an origin'),
    ('[sidecar]\nheadroom_mb = "1GB" # here', "sidecar.headroom_mb", "expected int, got str"),
    ('[sidecar]\non_exit = "leave" # here', "sidecar.on_exit", "invalid enum value 'leave'"),
    ('[sidecar]\nchain = [\n"log",\n"lgo"] # here', "sidecar.chain[1]", 'unknown plugin "lgo"; did you mean "log"?'),
    ('[sidecar]\nchain = ["keys"] # here', "sidecar.chain[0]", 'unknown plugin "keys"; declare it as [plugins.keys]'),
    ('[sidecar]\nchain = ["log", "log"] # here', "sidecar.chain[1]", '"log" stands in the chain twice'),
    (
        '[sidecar]\nchain = ["chat"] # here',
        "sidecar.chain[0]",
        '"chat" is a plugin of kind interface, which does not go into a chain',
    ),
    ('[sidecar]\ndrain_timeout = "forever" # here', "sidecar.drain_timeout", "expected a duration such as"),
    ("[sidecar]\ndrain_timeout = 30 # here", "sidecar.drain_timeout", 'expected text with a unit, such as "10m"'),
    ('[sidecar]\nmax_body = "64 megs" # here', "sidecar.max_body", "expected a size such as"),
    (
        '[sidecar]\nadmin_token = { env = "SIDECAR_TEST_UNSET" } # here',
        "sidecar.admin_token",
        "environment variable SIDECAR_TEST_UNSET is not set",
    ),
    ('[sidecar]\nadmin_token = "x" # here', "sidecar.admin_token", "a secret never stands in a manifest"),
    (
        '[sidecar]\nadmin_token = { file = "/no/such" } # here',
        "sidecar.admin_token",
        "secret file /no/such cannot be read",
    ),
]

PLUGINS = [
    (
        '[plugins.p]\nimport = "sidecar.builtin.log:Log"\ndisable_after = 0 # here',
        "plugins.p.disable_after",
        "expected 1 or more failures in a row",
    ),
    ("[plugins.x] # here\nconfig = {}", "plugins.x.import", "is missing: expected str"),
    ('[plugins.x]\nimport = "nope" # here', "plugins.x.import", 'expected "package.module:Class", got "nope"'),
    ('[plugins.x]\nimport = "no.such:X" # here', "plugins.x.import", 'no module "no.such" on sys.path'),
    (
        '[plugins.x]\nimport = "sidecar.builtin.keys:StaticKey" # here',
        "plugins.x.import",
        'has no "StaticKey"; did you mean "StaticKeys"?',
    ),
    (
        f'{PLUGIN}config = {{ keys = {{ "{HASH}" = "a" }}, keyz = 1 }} # here',
        "plugins.keys.config.keyz",
        'unknown key "keyz"; did you mean "keys"?',
    ),
    (f'{PLUGIN}config = {{ keys = {{ "sk-1" = "a" }} }} # here', "plugins.keys.config", 'the key of "a" must be'),
    (
        f'{PLUGIN}config = {{ keys = {{ "{HASH}" = "a" }} }}\non_error = "skip" # here',
        "plugins.keys.on_error",
        "an auth plugin that is skipped would open the door",
    ),
    (f'{PLUGIN}config = {{ keys = {{ "{HASH}" = "a" }} }}\ndeadline = "50" # here', "plugins.keys.deadline", "30s"),
    (f'{PLUGIN}config = {{ keys = {{ "{HASH}" = "a" }} }}\non_eror = 1 # here', "plugins.keys.on_eror", "on_error"),
]

DEVICE = [
    ('[devices.d]\nmatch = { uid = "x" } # here', "devices.d.match.uid", 'did you mean "uuid"?'),
    ('[devices.d]\nmatch = { index = "0" } # here', "devices.d.match.index", "expected int, got str"),
    ('[devices.d]\nmatch = { class = "nvidai" } # here', "devices.d.match.class", 'did you mean "nvidia"?'),
    ("[devices.d] # here\nmemory_mb = 5", "devices.d.match", "expected at least one of class, uuid"),
    ('[devices.d]\nmatch = { class = "cpu" }\nmemory_mb = -5 # here', "devices.d.memory_mb", "expected 0 or more"),
]

MODELS = [
    ("[models] # here\nm = 3", "models.m", "expected a table, got an integer", 2),
    (
        "[models.m] # here\n" + model("m").replace('mode = "chat"', "").replace("[models.m]", ""),
        "models.m.mode",
        "is missing",
    ),
    ('[models.m] # here\nmode = "chat"', "models.m.variants", "is missing: expected an array of tables"),
    ('[models.m]\nmode = "chat"\nvariants = [] # here', "models.m.variants", "no variants"),
    ('[models.m]\nmode = "chat"\nvariants = 1 # here', "models.m.variants", "expected an array of tables"),
    (
        model("m").replace('"chat"', '"chatt" # here'),
        "models.m.mode",
        'unknown mode "chatt"; did you mean "chat"?; known: base, chat, classifier, embedding, ',
    ),
    (model("m").replace('"chat"', '["chat", "dance"] # here'), "models.m.mode", 'unknown mode "dance"'),
    (model("m").replace('"chat"', "[] # here"), "models.m.mode", "expected at least one mode"),
    (model("m").replace('"chat"', "7 # here"), "models.m.mode", "expected str | array, got int"),
    (model("m", "idel_timeout = 1 # here"), "models.m.idel_timeout", 'did you mean "idle_timeout"?'),
    (model("m", "idle_timeout = '10' # here"), "models.m.idle_timeout", "expected a duration such as"),
    (model("m", "idle_timeout = '-1s' # here"), "models.m.idle_timeout", "expected a duration such as"),
    (model("m", "priority = 1.5 # here"), "models.m.priority", "expected int, got float"),
    (model("m", "pinned = 'yes' # here"), "models.m.pinned", "expected bool, got str"),
    (model("m", "chain = ['audit'] # here"), "models.m.chain[0]", 'unknown plugin "audit"'),
    (
        shared('balance = "least-busy" # here'),
        "models.m.balance",
        'unknown strategy "least-busy"; did you mean "least_busy"?; known: failover, least_busy, round_robin, weighted',
    ),
    (shared("balance = true # here"), "models.m.balance", "expected str, got bool"),
    (model("m", 'balance = "weighted" # here'), "models.m.balance", "fewer than two url variants"),
    (
        shared('chain = ["balance"]\nbalance = "weighted" # here'),
        "models.m.balance",
        'its chain has the route plugin "balance", which would choose first; leave one of them out',
    ),
    (
        '[sidecar]\nchain = ["balance:failover"]\n' + shared('balance = "weighted" # here'),
        "models.m.balance",
        'its chain has the route plugin "balance:failover"',
    ),
    (model("m", "aliases = 'n' # here"), "models.m.aliases", "expected array, got str"),
    (model('"a b"').replace('[models."a b"]', '[models."a b"] # here'), 'models."a b"', "is no model name"),
    (model('""').replace('[models.""]', '[models.""] # here'), 'models.""', "is no model name"),
    (
        '[sidecar]\nlisten = "0.0.0.0:1"\nchain = ["keys"]\n'
        + f'{PLUGIN}config = {{ keys = {{ "{HASH}" = "a" }} }}\n'
        + model("m", "chain = [] # here"),
        "models.m.chain",
        "no auth plugin, and the sidecar can be reached from other machines",
    ),
]

VARIANTS = [
    (variant("").replace("]]", "]] # here"), "models.m.variants[0]", "expected either a command"),
    (command('url = "http://h"').replace("]]", "]] # here"), "models.m.variants[0]", "expected either a command"),
    (command("[models.m.variants.env]\nA = 1 # here"), "models.m.variants[0].env.A", "expected str, got int"),
    (command('env = { "A=B" = "1" } # here'), "models.m.variants[0].env.A=B", "="),
    (command("comand = [] # here"), "models.m.variants[0].comand", 'did you mean "command"?'),
    (command("weight = 2 # here"), "models.m.variants[0].weight", "means nothing for a command variant"),
    (variant('url = "http://h"\nweight = 0 # here'), "models.m.variants[0].weight", "expected 1 or more"),
    (command("load_timeout = '0s' # here"), "models.m.variants[0].load_timeout", "expected more than 0s"),
    (command("load_timeout = 300 # here"), "models.m.variants[0].load_timeout", "expected text with a unit"),
    (command('cwd = "{evn.HOME}" # here'), "models.m.variants[0].cwd", 'unknown placeholder "{evn.HOME}"'),
    (command('env = { A = "{modle}" } # here'), "models.m.variants[0].env.A", 'did you mean "model"?'),
    (
        command("").replace('["serve", "{port}"]', '["serve",\n"{port}",\n"{prot}"] # here'),
        "models.m.variants[0].command[2]",
        'unknown placeholder "{prot}"; did you mean "port"?',
    ),
    (
        command("").replace('["serve", "{port}"]', '["serve",\n"{port}",\n"{env.SIDECAR_TEST_UNSET}"] # here'),
        "models.m.variants[0].command[2]",
        'environment variable SIDECAR_TEST_UNSET is not set ("{env.SIDECAR_TEST_UNSET}")',
    ),
    (
        command('env = { A = "{env.SIDECAR_TEST_UNSET}" } # here'),
        "models.m.variants[0].env.A",
        "environment variable SIDECAR_TEST_UNSET is not set",
    ),
    (
        command("").replace('"{port}"]', '"8000"] # here'),
        "models.m.variants[0].command",
        "nothing says {port}: the server must listen on the port that it is given",
    ),
    (command("").replace('"serve", ', '" ", # here\n'), "models.m.variants[0].command[0]", "expected a program"),
    (
        command("").replace('"serve"', '"a\\u0000b"').replace("]\nr", "] # here\nr"),
        "models.m.variants[0].command[0]",
        "NUL",
    ),
    (command("").replace('["serve", "{port}"]', '"serve" # here'), "models.m.variants[0].command", "expected array"),
    (command("").replace("memory_mb = 1", "memory_mb = 0 # here"), "models.m.variants[0].memory_mb", "never free"),
    (command("").replace("memory_mb = 1", "memory_mb = -1 # here"), "models.m.variants[0].memory_mb", "more than 0"),
    (command("").replace("memory_mb = 1", "").replace("]]", "]] # here"), "models.m.variants[0].memory_mb", "in MB"),
    (
        command("").replace("memory_mb = 1", 'memory_mb = "9GB" # here'),
        "models.m.variants[0].memory_mb",
        "expected int | table, got str",
    ),
    (
        command("").replace("memory_mb = 1", "memory_mb = {} # here"),
        "models.m.variants[0].memory_mb",
        'expected the MB taken on "cpu", more than 0',
    ),
    (
        command("").replace("memory_mb = 1", "memory_mb = { cpu = 1, cpi = 1 } # here"),
        "models.m.variants[0].memory_mb.cpi",
        '"cpi" is not among required_devices; did you mean "cpu"?',
    ),
    (
        command("").replace('["cpu"]', '["nvida"] # here'),
        "models.m.variants[0].required_devices[0]",
        f'unknown device "nvida"; did you mean "nvidia"?; {DEVICES}',
    ),
    (
        command("").replace('["cpu"]', '["nvidia:x"] # here'),
        "models.m.variants[0].required_devices[0]",
        'unknown device "nvidia:x"',
    ),
    (
        command("").replace('["cpu"]', "[] # here"),
        "models.m.variants[0].required_devices",
        f"is missing; known classes: {DEVICES.removeprefix('known: ')}",
    ),
    (variant('url = "127.0.0.1:9000" # here'), "models.m.variants[0].url", 'expected "http://HOST:PORT"'),
    (variant('url = "ftp://h" # here'), "models.m.variants[0].url", 'expected "http://HOST:PORT"'),
    (variant('url = "http://[::1" # here'), "models.m.variants[0].url", "Invalid IPv6 URL"),
    (variant('url = "http://h:99999" # here'), "models.m.variants[0].url", "Port out of range"),
    (variant('url = "unix:run/s" # here'), "models.m.variants[0].url", "expected the absolute path of a socket"),
    (variant('url = "http://{hots}:1" # here'), "models.m.variants[0].url", 'unknown placeholder "{hots}"'),
    (variant('url = "http://h?key=1" # here'), "models.m.variants[0].url", "a key goes into api_key"),
    (variant('url = "http://me:pw@h" # here'), "models.m.variants[0].url", "no query, fragment or credentials"),
    (variant('url = "http://h"\nmemory_mb = 1 # here'), "models.m.variants[0].memory_mb", "means nothing for a url"),
    (variant('url = "http://h"\nenv = { A = "1" } # here'), "models.m.variants[0].env", "means nothing for a url"),
    (
        variant('url = "http://h"\napi_key = { env = "SIDECAR_TEST_UNSET" } # here'),
        "models.m.variants[0].api_key",
        "environment variable SIDECAR_TEST_UNSET is not set",
    ),
    (variant('url = "http://h"\napi_key = { evn = "X" } # here'), "models.m.variants[0].api_key", '{ env = "NAME" }'),
    (
        command('name = "a"\n[[models.m.variants]]\nurl = "http://h"\nname = "a" # here'),
        "models.m.variants[1].name",
        'a variant "a" stands further up',
    ),
]

FILES = [
    ("[model.m] # here", "model", 'unknown key "model"; did you mean "models"?'),
    ("models = 3 # here", "models", "expected tables [models.NAME]"),
    ("sidecar = 3 # here", "sidecar", "expected a table, got an integer"),
    ("a = # here", "", "is not TOML: Invalid value"),
    ("[models.m]\n[models.m] # here", "", "is not TOML: Cannot declare ('models', 'm') twice"),
    ("x = [1,\n2,\n# here", "", "is not TOML: "),
    ("[models.m]\nmode = 1979-13-45 # here", "", "is not TOML: "),
]

CASES = [(name, *case) for name, table in sorted(globals().copy().items()) if isinstance(table, list) for case in table]


def _marked_line(text: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if "# here" in line)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}-{case[3][:30]}")
def test_a_fault_is_told_with_its_file_line_path_and_remedy(
    case: tuple[str, str, str, str] | tuple[str, str, str, str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SIDECAR_TEST_UNSET", raising=False)
    _, text, path, words, *line = case
    problems = declare(tmp_path, {ONE_FILE: text, "good.toml": model("good")}, {}).problems
    place = f"{tmp_path / ONE_FILE}:{line[0] if line else _marked_line(text)}"
    assert [f"{problem.file}:{problem.line}" for problem in problems] == [place], [str(p) for p in problems]
    [problem] = problems
    assert problem.path == path
    assert words in problem.message
    assert str(problem).startswith(f"{place}: {path}: " if path else f"{place}: ")


@pytest.mark.parametrize(
    "text",
    [
        '[sidecar]\nlisten = "[::1]:8080"',
        '[sidecar]\nlisten = "localhost:0"',
        '[sidecar]\nlisten = "0.0.0.0:1"\ninsecure = true',
        f'[sidecar]\nlisten = "0.0.0.0:1"\nchain = ["keys"]\n{PLUGIN}config = {{ keys = {{ "{HASH}" = "a" }} }}',
        model("Qwen/Qwen3-8B:q4@main+x"),
        model("m", 'aliases = ["m", "n", "n"]'),
        model("m", "idle_timeout = '0s'"),
        model("m").replace('["cpu"]', '["nvidia:0", "GPU-0a1b", "MIG-0a1b", "nvidia", "nvidia"]'),
        model("m").replace("100", "{ cpu = 1 }"),
        '[devices.big]\nmatch = { name = "*H200*" }\n' + model("m").replace('"cpu"', '"big"'),
        model("m").replace('"{port}"', '"serve"').replace("memory_mb", 'env = { PORT = "{port}" }\nmemory_mb'),
        variant('url = "https://user.example/v1"'),
        variant('url = "http://{env.HOST}:9000"'),
        variant('url = "{env.UPSTREAM}"'),
        shared('balance = "round_robin"'),
        '[sidecar]\nchain = ["log", "balance:weighted"]\n' + shared('chain = ["log"]\nbalance = "failover"'),
    ],
)
def test_what_is_right_is_let_through(tmp_path: Path, text: str) -> None:
    text = text.replace("[models.Qwen/Qwen3-8B:q4@main+x", '[models."Qwen/Qwen3-8B:q4@main+x"')
    text = text.replace("[[models.Qwen/Qwen3-8B:q4@main+x.", '[[models."Qwen/Qwen3-8B:q4@main+x".')
    loaded = declare(tmp_path, {ONE_FILE: text}, {"HOST": "box", "UPSTREAM": "http://h:1"})
    assert [str(problem) for problem in loaded.problems] == []


def test_an_alias_belongs_to_the_first_who_claims_it(tmp_path: Path) -> None:
    files = {
        "a.toml": model("a", 'aliases = ["x"]'),
        "b.toml": model("b", 'aliases = [\n"y",\n"x"]'),
        "c.toml": model("c", 'aliases = ["a"]'),
    }
    loaded = declare(tmp_path, files)
    assert [str(problem) for problem in loaded.problems] == [
        f'{tmp_path}/b.toml:6: models.b.aliases[1]: "x" means the model a already',
        f'{tmp_path}/c.toml:4: models.c.aliases[0]: "a" means the model a already',
    ]
    assert list(loaded.declaration.models) == ["a"]


def test_what_is_known_at_load_is_filled_in(tmp_path: Path) -> None:
    text = model("m", variant='env = { A = "{env.HOME}" }').replace('"serve"', '"{python}", "{state_dir}/{model}"')
    loaded = declare(tmp_path, {"a.toml": f'[sidecar]\nstate_dir = "/s"\n{text}'}, {"HOME": "/home/me"})
    [filled] = loaded.declaration.models["m"].variants
    assert filled.command[1:] == ("/s/m", "{port}")
    assert filled.env == {"A": "/home/me"}
    assert filled.name == "default"


def test_variants_without_a_name_are_numbered(tmp_path: Path) -> None:
    text = model("m") + '[[models.m.variants]]\nurl = "http://h"\nname = "far"\n[[models.m.variants]]\nurl = "http://i"'
    [declared] = declare(tmp_path, {"a.toml": text}).declaration.models.values()
    assert [one.name for one in declared.variants] == ["variant-0", "far", "variant-2"]


def test_a_faulty_thing_is_not_an_unknown_one_as_well(tmp_path: Path) -> None:
    text = '[plugins.audit]\nimport = "no.such:X"\n[devices.d]\nmatch = 3\n'
    text += model("m", 'chain = ["audit"]').replace('"cpu"', '"d"')
    loaded = declare(tmp_path, {"a.toml": text})
    assert [problem.path for problem in loaded.problems] == ["plugins.audit.import", "devices.d.match"]
    assert list(loaded.declaration.models) == ["m"]


def test_a_faulty_plugin_in_front_is_no_open_door(tmp_path: Path) -> None:
    text = f'[sidecar]\nlisten = "0.0.0.0:1"\nchain = ["keys"]\n{PLUGIN}'
    loaded = declare(tmp_path, {"a.toml": text})
    assert "sidecar.listen" not in [problem.path for problem in loaded.problems]
    assert "plugins.keys.config" in [problem.path for problem in loaded.problems]
    assert "keys" in loaded.catalog.faults


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses_are_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert listen_address(text) == address


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 - looked at, not bound
        ("::", False),
        ("10.1.1.1", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_only_a_loopback_address_is_safe_from_others(host: str, local: bool) -> None:
    assert is_loopback(host) is local


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    write(tmp_path, {"key": "s3cret\n"})
    text = variant(f'url = "http://h"\napi_key = {{ file = "{tmp_path}/key" }}')
    [declared] = declare(tmp_path / "manifests", {"a.toml": text}).declaration.models.values()
    key = declared.variants[0].api_key
    assert key is not None
    assert key.reveal() == "s3cret"
    assert "s3cret" not in repr(declared)


GUARDS = """
from plugin_sdk import Endpoint, Filter, Interface

class OnlyChat(Filter):
    modes = ("chat",)
    def on_request(self, exchange): ...

class SeesEvents(Filter):
    def on_event(self, exchange, event): ...

class Sound(Interface):
    provides = "sound"
    endpoints = (Endpoint("/v1/sound", "sound"),)
    events = False
"""


@pytest.mark.parametrize(
    ("filter_class", "mode", "why"),
    [
        ("OnlyChat", "embedding", "it runs on mode chat only"),
        ("SeesEvents", "sound", "it sees events, and mode sound has none that can be parsed"),
        ("OnlyChat", "chat", ""),
        ("SeesEvents", "chat", ""),
    ],
)
@pytest.mark.parametrize("chain", ["model", "default"])
@pytest.mark.parametrize("on_error", ["deny", "by kind", "skip"])
def test_a_guard_that_cannot_guard_a_model_is_a_fault_of_the_model(
    tmp_path: Path, filter_class: str, mode: str, why: str, chain: str, on_error: str
) -> None:
    own = 'chain = ["guard"] # here' if chain == "model" else "# here"
    manifest = f"""
[sidecar]
chain = {["guard"] if chain == "default" else []}
[plugins.guard]
import = "guards:{filter_class}"
{"" if on_error == "by kind" else f'on_error = "{on_error}"'}
[plugins.sound]
import = "guards:Sound"
[models.m]
mode = "{mode}" # default
{own}
[[models.m.variants]]
url = "http://h"
"""
    loaded = declare(tmp_path, {"a.toml": manifest, "plugins/guards.py": GUARDS})
    if not why or on_error == "skip":
        assert not loaded.problems
        return
    [problem] = loaded.problems
    mark = "# here" if chain == "model" else "# default"
    assert problem.line == next(number for number, line in enumerate(manifest.splitlines(), 1) if mark in line)
    assert problem.path == ("models.m.chain[0]" if chain == "model" else "models.m.mode")
    assert f'the filter "guard" is a guard, and cannot guard this model: {why}' in problem.message
    assert 'on_error = "skip" in [plugins.guard]' in problem.message
