"""What has to be watched to hear of every change to the manifests: real folders, and single names in further ones.

The kernel tells of changes in a folder, not of those below it or behind a link. So each folder that may hold manifests
is watched where it really is, and so is each folder with a link on the way to a manifest, or with the end of that way.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from sidecar.mechanism import source

_MOST_LINKS = 40  # as many as the kernel follows
_CACHE = "__pycache__"  # written to whenever a plugin is imported


class Watched(msgspec.Struct, frozen=True):
    """All paths are real ones. endings: folder to the ending of the files that count in it, besides folders and links.

    names: single paths that count wherever they are. identities: device and inode of each folder to be watched; another
    one of the same name is a folder that nobody watches yet.
    """

    endings: dict[str, str]
    names: frozenset[str]
    identities: dict[str, tuple[int, int]]

    def concerns(self, path: str) -> bool:
        """Whether what happened to `path` may be a change of the declaration or of a plugin."""
        if self.may_end(path):
            return True
        folder, _, name = path.rpartition("/")
        ending = self.endings.get(folder or "/")
        if ending is None or name.startswith(".") or name == _CACHE:
            return False
        return name.endswith(ending) or _is_folder_or_link(path)

    def may_end(self, path: str) -> bool:
        """Whether what happened to `path` may have ended the watching of a folder, even if all looks as before."""
        return path in self.names or path in self.identities


def look(root: Path) -> Watched:
    """What has to be watched as things are now. A root that is missing is watched for where it would come to be."""
    plugins = root / source.PLUGIN_FOLDER
    names = {*_way("/", str(root)), *_way("/", str(plugins))}
    endings = _gather(plugins, ".py", lambda entry: entry.name == _CACHE, names)
    endings |= _gather(root, ".toml", source.is_plugin_folder(root), names)
    identities = {}
    for folder in {*endings, *(name.rpartition("/")[0] or "/" for name in names)}:
        if os.access(folder, os.R_OK):  # the kernel refuses to watch what we may not list
            with contextlib.suppress(OSError):  # gone since
                stat = os.stat(folder)  # noqa: PTH116 - there may be hundreds
                identities[folder] = (stat.st_dev, stat.st_ino)
    return Watched(endings, frozenset(names), identities)


def _gather(top: Path, ending: str, without: Callable[[os.DirEntry[str]], bool], names: set[str]) -> dict[str, str]:
    """Every folder from `top` on; adds to `names` what the links in them go through."""
    real = {str(top): os.path.realpath(top)}
    found: dict[str, str] = {}
    with contextlib.suppress(source.SourceError):  # reading tells it; what comes before is watched all the same
        for path, subfolders, files in source.folders(top, without):
            here = real[path]
            found[here] = ending
            for entry in subfolders:
                if entry.is_symlink():
                    names.update(_way(here, entry.name))
                    real[entry.path] = os.path.realpath(entry.path)
                else:
                    real[entry.path] = _join(here, entry.name)
            for entry in files:
                if entry.is_symlink() and (entry.name.endswith(ending) or not _exists(entry.path)):
                    names.update(_way(here, entry.name))
    return found


def _way(folder: str, path: str) -> Iterator[str]:
    """From a real folder along `path`: the real places of the links, and of the end, or of what is missing."""
    rest = path.split("/")[::-1]
    links = 0
    while rest:
        name = rest.pop()
        if name == "..":
            folder = folder.rpartition("/")[0] or "/"
        if name in ("", ".", ".."):
            continue
        place = _join(folder, name)
        try:
            target = os.readlink(place)  # noqa: PTH115 - there may be hundreds
        except OSError:
            if not _exists(place):
                break
            folder = place  # no link
            continue
        yield place
        links += 1
        if links > _MOST_LINKS:
            return
        folder = "/" if target.startswith("/") else folder
        rest += target.split("/")[::-1]
    else:
        place = folder
    yield place


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _exists(path: str) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path raises where this says no


def _is_folder_or_link(path: str) -> bool:
    return os.path.isdir(path) or os.path.islink(path)  # noqa: PTH112, PTH114 - Path raises where these say no
