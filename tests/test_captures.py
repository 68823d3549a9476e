"""The pictures in the README are what the commands show."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.captures import PICTURES

ROOT = Path(__file__).resolve().parents[1]


def test_the_pictures_in_the_readme_are_what_the_commands_show(tmp_path: Path) -> None:
    code = "import sys, pathlib, tests.captures as c; c.PICTURES = pathlib.Path(sys.argv[1]); c.main()"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in PICTURES.glob("*.svg")}
    assert sorted(kept) == sorted(written) == ["status.svg", "top.svg"]
    assert kept == written, "write them anew: python -m tests.captures"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, picture in written.items():
        ElementTree.fromstring(picture)  # noqa: S314 - see above
        assert "qwen3-32b" in picture
        assert f"](examples/pictures/{name})" in readme
