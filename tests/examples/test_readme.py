"""The examples' README is true: its lists are whole, its code runs, its lines are counted, its tests exist."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import json
import re
import site
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from plugin_sdk import DeviceStatus, Headers, Outcome, Principal, Reject, Reply, Request, Usage
from sidecar.mechanism.finding import entries
from sidecar.mechanism.sources import Library
from tests.e2e.harness import PATIENCE_S, ROOT
from tests.examples import shipped
from tests.examples.test_redis_stats import redis_server
from tests.support import declare, write

README = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
COMPARED = README.split("## Coming from LLM-Manager or LLM One API\n", 1)[1]
CODE = {
    re.split(r"[:\n]", text.removeprefix("# "), maxsplit=1)[0]: text
    for text in re.findall(r"^```(?:python|toml)\n(.*?)^```", COMPARED, re.MULTILINE | re.DOTALL)
}
COUNTED = re.findall(r"^\| [^|]+ \| [^|]+ \| (\d+) \| `([^`]+)` \| (\d+) \|$", COMPARED, re.MULTILINE)
CLAIMS = COMPARED.split("| there | here | held by |\n", 1)[1].splitlines()[1:]
LOADS = r"""
import json, sys, time
from pathlib import Path
from sidecar.mechanism import plugins
def used_kb(): return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
plugins.load({}, Path(sys.argv[1]))
kb, began = used_kb(), time.perf_counter()
found = plugins.load({}, Path(sys.argv[2])).loaded
print(json.dumps({"s": time.perf_counter() - began, "kb": used_kb() - kb, "names": list(found)}))
"""


def module(file: str, folder: Path) -> Any:
    """The code that the README shows for a file."""
    path = write(folder, {file: CODE[file]}) / file
    spec = importlib.util.spec_from_file_location(f"shown_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def code_lines(text: str, *, python: bool) -> int:
    """The lines that are neither blank nor comments nor docstrings."""
    told: set[int] = set()
    for node in ast.walk(ast.parse(text)) if python else ():
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if ast.get_docstring(node) is not None:
                told |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and number not in told for number, line in lines)


def named_in(file: Path) -> set[str]:
    """The names of a file's tests, also of those that are made by a call."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in found if name.startswith("test_")}


# --- lists ----------------------------------------------------------------------------------------------------------


def test_each_example_is_listed_and_can_be_tried_and_each_link_leads_somewhere() -> None:
    for example in sorted(path.name for path in shipped.PLUGINS.iterdir() if path.is_dir()):
        assert f"| [`{example}`]" in README
        (folder,) = re.findall(rf"sidecar run (examples/plugins/{example}\S*)", README)
        assert (ROOT / folder / "sidecar.toml").is_file()
        assert (ROOT / "tests" / "examples" / f"test_{example}.py").is_file()
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / "examples" / link).exists(), link


def test_each_claim_names_tests_that_exist() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in CLAIMS]
    for claim, here, held in rows:
        if claim.startswith("**"):
            continue
        assert here, claim
        ids = re.findall(r"`([^`]+)`", held)
        assert ids, claim
        for id_ in ids:
            file, _, name = id_.partition("::")
            assert name in named_in(ROOT / file), id_


def test_the_lines_of_the_comparison_are_those_of_its_code() -> None:
    assert {file for _, file, _ in COUNTED} == set(CODE)
    for _, file, here in COUNTED:
        assert code_lines(CODE[file], python=file.endswith(".py")) == int(here), file


# --- the code of the comparison -------------------------------------------------------------------------------------


def test_what_is_compared_lies_together_and_has_no_problems(tmp_path: Path) -> None:
    loaded = declare(tmp_path, {file: text for file, text in CODE.items() if file != "pyproject.toml"})
    assert [str(problem) for problem in loaded.problems] == []
    assert {"my_gpu", "MyMode", "database_auth", "redis_stats"} <= set(loaded.catalog.loaded)
    assert loaded.declaration.models["MyModel"].modes == ("MyMode",)


async def test_the_gpu_and_the_mode_of_the_comparison_do_what_they_should(tmp_path: Path) -> None:
    assert module("plugins/my_gpu.py", tmp_path).my_gpu().probe() == DeviceStatus(total_mb=16384, free_mb=8192)

    class Models:
        """A server that has only its list of models to be asked for."""

        async def get(self, path: str) -> Reply:
            return Reply(200 if path == "/v1/models" else 404)

        async def post(self, path: str, body: bytes) -> Reply:
            raise AssertionError(path)

    assert await module("plugins/my_mode.py", tmp_path).MyMode().ready(Models())


def test_the_keys_of_the_comparison_are_those_of_the_table(tmp_path: Path) -> None:
    file = tmp_path / "auth.db"
    database = sqlite3.connect(file)
    database.executescript(
        "CREATE TABLE api_keys (key, user_id, active); INSERT INTO api_keys VALUES ('sk-1', 7, 1), ('sk-2', 8, 0)"
    )
    database.close()
    shown = module("plugins/database_auth.py", tmp_path)
    plugin = shown.DatabaseAuth(shown.Settings(db_path=str(file)))

    def caller(key: str) -> Principal:
        headers = Headers(((b"authorization", f"Bearer {key}".encode()),))
        principal: Principal = plugin.authenticate(Request(method="POST", path="/", headers=headers))
        return principal

    assert caller("sk-1") == Principal("7")
    for key in ("sk-2", "sk-3", ""):
        with pytest.raises(Reject, match="not valid"):
            caller(key)


async def test_the_stats_of_the_comparison_are_in_redis(tmp_path: Path) -> None:
    shown = module("plugins/redis_stats.py", tmp_path)
    with redis_server() as server:
        plugin = shown.RedisStats(shown.Settings(redis_url=server.url))
        await plugin.open()
        for usage in (Usage(input_tokens=7, output_tokens=4), None):
            await asyncio.to_thread(plugin.record, Outcome(model="qwen", principal="ann", usage=usage))
        await plugin.close()
        assert server.counted("qwen", "ann") == {"total_requests": 2, "total_tokens": 11}


def test_the_package_of_the_comparison_can_be_installed_for_editing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline = '\n[tool.hatch.build]\ndev-mode-dirs = ["."]\n'  # or it needs one more package from the network
    source = {"my_auth_plugin/__init__.py": "", "my_auth_plugin/database_auth.py": CODE["plugins/database_auth.py"]}
    write(tmp_path / "source", {"pyproject.toml": CODE["pyproject.toml"] + offline, **source})
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--prefix", str(tmp_path / "env")]
    command = [sys.executable, "-m", "pip", "install", "-q", *options, "-e", str(tmp_path / "source")]
    subprocess.run(command, check=True, capture_output=True, timeout=3 * PATIENCE_S)  # pip is slow on a busy machine
    (packages,) = (tmp_path / "env").glob("lib/*/site-packages")
    monkeypatch.setattr(sys, "path", list(sys.path))
    site.addsitedir(str(packages))
    library = Library()

    def path_of_the_default() -> str:
        finds = entries(library)
        assert "database" not in finds.faults, finds.faults["database"]
        (found,) = [one for one in finds.found if "database" in one.names]
        return str(found.cls().config.db_path)

    assert path_of_the_default() == "auth.db"
    edited = CODE["plugins/database_auth.py"].replace('"auth.db"', '"keys.db"')
    write(tmp_path / "source", {"my_auth_plugin/database_auth.py": edited})
    assert path_of_the_default() == "auth.db"
    library.installed.reread()  # as `sidecar reload` has it done
    assert path_of_the_default() == "keys.db"


def test_type_checkers_know_the_plugins_of_the_comparison(tmp_path: Path) -> None:
    wrong = CODE["plugins/database_auth.py"].replace("self.config.db_path", "self.config.db_pth")
    write(tmp_path, {file.partition("/")[2]: text for file, text in CODE.items() if file.startswith("plugins/my_")})
    write(tmp_path, {"database_auth.py": CODE["plugins/database_auth.py"], "wrong.py": wrong})
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE_S)  # without its cache
    (told,) = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert 'wrong.py:15: error: "Settings" has no attribute "db_pth"; maybe "db_path"?' in told


def test_a_hundred_plugins_take_little_time_and_memory(tmp_path: Path) -> None:
    """Fifty device classes and fifty modes: each takes less than 10 ms and 64 KB."""
    gpu, mode = CODE["plugins/my_gpu.py"], CODE["plugins/my_mode.py"]
    for number in range(50):
        files = {f"gpu_{number}.py": gpu.replace('"my_gpu"', f'"gpu_{number}"')}
        files[f"mode_{number}.py"] = mode.replace('"MyMode"', f'"mode_{number}"').replace("mymode", f"mode{number}")
        write(tmp_path / "many", files)
    command = [sys.executable, "-c", LOADS, str(tmp_path / "none"), str(tmp_path / "many")]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE_S).stdout)
    assert {f"{kind}_{number}" for kind in ("gpu", "mode") for number in range(50)} <= set(found["names"])
    assert found["s"] < 1
    assert found["kb"] < 100 * 64
