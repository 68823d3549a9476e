"""Bad plugins of every sort in one sidecar: each harms its own model alone, and its author is told where and how."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import pytest

from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, running, settings, until
from tests.servers import HTTP_SERVER
from tests.support import serving

HEAD = """
import asyncio, gc, json, logging, os, socket, sys, threading, time
import plugin_sdk
from plugin_sdk import *
"""
AUTH = "auth_unavailable"
FILTER = "filter_unavailable"
SHORT = 'deadline = "100ms"'
CALL = "def authenticate(self, request)"
GOOD = f"{CALL}: return Principal('x')"
NAP = "asyncio.sleep(0)"
DEAF = "        except asyncio.CancelledError: pass"
START = "async def open(self): asyncio.ensure_future(self.later())"
MEDDLE = """    json.loads = json.dumps = sys.stdout = socket.create_connection = None
    os.environ.clear(); os.chdir('/'); gc.disable(); logging.raiseExceptions = False"""
TWO = "Headers(((b'a', b'1\\r\\n\\r\\nGET /'),))"


class Bad(msgspec.Struct, frozen=True):
    """A plugin that is a bad one. HERE in its code marks the line that is to blame; else it is one of the manifest.

    told: what its author is told, besides the place; "" if there is nothing to tell. table: more of its table.
    status, error: what a request for its model gets.
    """

    name: str
    code: str
    told: str
    table: str = ""
    status: int = 503
    error: str = AUTH

    @property
    def text(self) -> str:
        return HEAD + self.code

    @property
    def place(self) -> str:
        """As it is told: file and line, in one of the two ways in which that is written."""
        for number, line in enumerate(self.text.splitlines(), 1):
            if "HERE" in line:
                return rf'/plugins/{self.name}\.py(:|", line ){number}\b'
        return rf"/{self.name}\.toml:\d"


def of(kind: str, name: str, lines: str, told: str, table: str = "", status: int = 503, error: str = AUTH) -> Bad:
    """A plugin of that kind, with these lines in its class."""
    indented = "".join(f"    {line}\n" for line in lines.splitlines())
    return Bad(name, f"class Bad({kind}):\n{indented}", told, table, status, error)


BAD = [
    # when it is imported
    Bad("syntax", "def broken(:  # HERE\n", "invalid syntax"),
    Bad("misses_a_module", "import no_such_module  # HERE\n", "No module named 'no_such_module'"),
    Bad("raises_at_import", "raise RuntimeError('at import')  # HERE\n", "RuntimeError: at import"),
    Bad("exits_at_import", "sys.exit(3)  # HERE\n", "SystemExit: 3"),
    Bad("recurses_at_import", "def f(): f()  # HERE\nf()\n", "RecursionError"),
    # what it looks like
    Bad("another_name", f"class Gate(Auth):\n    {CALL}: ...\n", 'has no "Bad"'),
    Bad("no_plugin", "class Bad:\n    pass\n", "must be a class derived from one of Device, Interface, Auth, Route"),
    Bad("no_kind", "class Bad(plugin_sdk.Plugin):\n    pass\n", "must be a class derived from one of Device"),
    Bad("two_kinds", "class Bad(Auth, Filter):  # HERE\n    pass\n", "is of several kinds: make a class for each"),
    Bad("no_method", "class Bad(Auth):  # HERE\n    pass", "does not define authenticate, which an auth plugin must"),
    Bad("misspelt", "class Bad(Auth):  # HERE\n    def authenticat(self): ...", 'is "authenticat" meant to be it?'),
    Bad("no_parameter", "class Bad(Auth):  # HERE\n    def authenticate(self): ...", "is called with (self, request)"),
    Bad("yields", f"class Bad(Auth):  # HERE\n    {CALL}: yield", "return what it gives"),
    Bad("two_views", "class Bad(Filter):  # HERE\n    on_chunk = on_event = lambda *of: None", "bytes or events"),
    Bad("own_init", "class Bad(Filter):  # HERE\n    def __init__(self): ...\n    on_request = None", "take *args and"),
    Bad("other_settings", "class Bad(Auth[int]):  # HERE\n    authenticate = None", "derive the class from plugin_sdk"),
    Bad("waits", "class Bad(Interface):  # HERE\n    async def validate(self, request): ...", "must be a plain `def`"),
    # its table
    of("Auth", "unknown_setting", GOOD, 'unknown key "colour"', "config = { colour = 1 }"),
    of("Auth", "opens_the_door", GOOD, "would open the door", 'on_error = "skip"'),
    # its life
    of("Auth", "cannot_open", f"async def open(self): raise OSError('no disk')  # HERE\n{GOOD}", "OSError: no disk"),
    of("Auth", "never_opens", f"async def open(self): await asyncio.Event().wait()\n{GOOD}", ""),
    of("Auth", "cannot_close", f"{GOOD}\nasync def close(self): sys.exit(3)", "", status=200, error=""),
    # its calls
    of("Auth", "admits_nobody", f"{CALL}: return None  # HERE", "expected a Principal, got"),
    of("Auth", "counts", f"{CALL}: return Principal(7)  # HERE", "a Principal whose id"),
    of("Auth", "raises", f"{CALL}: raise ValueError('oops')  # HERE", "ValueError: oops"),
    of("Auth", "rejects_badly", f"{CALL}: raise Reject(200, b'')  # HERE", "from 400 to 599"),
    of("Auth", "exits", f"{CALL}: sys.exit(3)  # HERE", "raise nothing but errors: Reject to"),
    of("Auth", "exits_at_once", f"async {CALL}: sys.exit(3)  # HERE", "raise nothing but errors"),
    of("Auth", "interrupts", f"@inline\n{CALL}: raise KeyboardInterrupt  # HERE", "nothing but er"),
    of(
        "Auth",
        "cancels",
        f"async {CALL}:\n    asyncio.current_task().cancel()\n    await {NAP}  # HERE",
        "CancelledError",
    ),
    of("Auth", "hangs", f"async {CALL}: await asyncio.Event().wait()  # HERE", "0.1 s", SHORT),
    of("Auth", "hangs_aside", f"{CALL}: time.sleep(2)  # HERE", "or the plugin a longer", SHORT),
    of(
        "Auth",
        "locks_itself_out",
        f"{CALL}:  # HERE\n    lock = threading.Lock()\n    while lock.acquire(): pass",
        "0.1 s",
        SHORT,
    ),
    of("Auth", "is_deaf", f"async {CALL}:  # HERE\n    while True:\n        try: await {NAP}\n{DEAF}", "0.1 s", SHORT),
    of("Auth", "spins", f"@inline\n{CALL}:\n    while True: pass  # HERE", "without @inline"),
    of("Auth", "sleeps", f"async {CALL}: time.sleep(60)  # HERE", "or call asyncio.to_thread"),
    of("Auth", "recurses", f"{CALL}: self.authenticate(request)  # HERE", "RecursionError"),
    of("Auth", "mutates", f"{CALL}: request.path = '/'  # HERE", "immutable type: 'Request'"),
    of("Auth", "closes", f"async {CALL}: await self.http.aclose()  # HERE", "the sidecar closes it"),
    of(
        "Auth",
        "leaves_a_task",
        f"{START}\n{GOOD}\nasync def later(self): time.sleep(60)  # HERE",
        "blocking the",
        status=200,
        error="",
    ),
    of("Auth", "meddles", f"{CALL}:\n{MEDDLE}\n    return Principal('x')", "", status=200, error=""),
    of("Filter", "answers_7", "def on_request(self, exchange): return 7  # HERE", "a Response or None", error=FILTER),
    of(
        "Filter",
        "says_1",
        "def on_response(self, exchange): return Response(status=1)  # HERE",
        "200 to 599",
        error=FILTER,
    ),
    of(
        "Filter",
        "smuggles",
        f"def on_request(self, exchange): return Response(headers={TWO})  # HERE",
        "line breaks",
        error=FILTER,
    ),
    of(
        "Filter",
        "tells_all",
        "def on_request(self, exchange): return Response(body=b'1' * 2**25)",
        "",
        status=200,
        error="",
    ),
    of(
        "Filter",
        "is_blind",
        "modes = ('speech',)\nasync def on_end(self, *end): ...",
        "a guard",
        status=404,
        error="model_not_found",
    ),
    of(
        "Route",
        "goes_astray",
        "def resolve(self, request, targets): return 7  # HERE",
        "a Target or None",
        status=200,
        error="",
    ),
    of(
        "Stats",
        "cannot_count",
        "def record(self, outcome): raise OSError('full')  # HERE",
        "OSError: full",
        status=200,
        error="",
    ),
]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    root = tmp_path_factory.mktemp("bad")
    with serving(HTTP_SERVER, "--name", "word") as server:

        def model(name: str, chain: str) -> str:
            return f'[models.{name}]\nmode = "chat"\nchain = ["{chain}"]\nvariants = [{{ url = "{server.url}" }}]\n'

        files = {"sidecar.toml": settings(root / "state", free_block()), "other.toml": model("other", "keys")}
        for bad in BAD:
            table = f'[plugins.{bad.name}]\nimport = "{bad.name}:Bad"\n{bad.table}\n'
            files[f"plugins/{bad.name}.py"] = bad.text
            files[f"{bad.name}.toml"] = table + model(f"{bad.name}-model", bad.name)
        with running(root, files) as found:
            until(lambda: ask(found, "other") == (200, ""), "the server is known to be healthy")
            yield found


def ask(sidecar: Sidecar, model: str) -> tuple[int, str]:
    """The status of an answer, and the code of an error."""
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": model, "messages": []})
    return answer.status_code, answer.json()["error"]["code"] if answer.is_error else ""


def told(sidecar: Sidecar, name: str) -> str:
    """All that the author of a plugin finds: in the list, among the problems, in the log."""
    with sidecar.http() as http:
        (listed,) = [one for one in http.get("/-/plugins").json() if one["name"] == name]
    lines = [line for line in (*sidecar.status()["problems"], *sidecar.log) if re.search(rf"\b{name}\b", line)]
    return "\n".join([listed["state"], listed["last_error"], *lines])


@pytest.mark.parametrize("bad", BAD, ids=[bad.name for bad in BAD])
def test_a_bad_plugin_harms_its_own_model_alone_and_its_author_is_told_where(bad: Bad, sidecar: Sidecar) -> None:
    assert ask(sidecar, f"{bad.name}-model") == (bad.status, bad.error)
    assert ask(sidecar, "other") == (200, "")
    if bad.told:
        until(lambda: bad.told in told(sidecar, bad.name), f"{bad.told!r} is told")
        assert re.search(bad.place, told(sidecar, bad.name)), bad.place
