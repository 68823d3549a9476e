"""A git repository that a test pushes to: a bare one, as a server has it, and a work tree beside it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support import free_port

AUTHOR = "Alice"
MAIL = "alice@example.com"


class Repository:
    """`bare` is what is served; everything else happens in `work`, on the branch `main`.

    really: push by `git push`. Else `bare` looks up its objects in `work`, and is told what its branch is: to whoever
    fetches from it that is the same, and takes five processes less.
    """

    def __init__(self, folder: Path, *, really: bool = False) -> None:
        self.really = really
        self.folder = folder
        self.bare = folder / "manifests.git"
        self.work = folder / "work"
        folder.mkdir(parents=True, exist_ok=True)
        self._run("init", "--quiet", "--template=", "--bare", "--initial-branch=main", str(self.bare))
        self._run("init", "--quiet", "--template=", "--initial-branch=main", str(self.work))
        self.git("remote", "add", "origin", str(self.bare))
        if not really:
            (self.bare / "objects" / "info" / "alternates").write_text(f"{self.work}/.git/objects\n")

    def push(
        self,
        files: Mapping[str, str | None],
        message: str = "Change",
        *,
        key: Path | None = None,
        gpg: Path | None = None,
    ) -> str:
        """Commit files (None: remove it) and push, by force if need be; the commit's id.

        key, gpg: a key of ssh's, or a home of gpg's, that signs it.
        """
        for name, text in files.items():
            path = self.work / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        self.git("add", "--all")
        return self.commit(message, key=key, gpg=gpg)

    def commit(self, message: str, *, key: Path | None = None, gpg: Path | None = None) -> str:
        """Commit what is in the index, and push."""
        signing = ("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}") if key else ()
        environment = {"GNUPGHOME": str(gpg)} if gpg else {}
        sign = ("-S",) if key or gpg else ()
        command = (*signing, "commit", "--quiet", "--allow-empty", "-m", message, *sign)
        self._run("-C", str(self.work), *command, **environment)
        commit = self.head()
        if self.really:
            self.git("push", "--quiet", "--force", "origin", "HEAD:main")
        else:
            (self.bare / "refs" / "heads" / "main").write_text(f"{commit}\n")
        return commit

    def evil(self, name: str, text: str) -> str:
        """Push a commit as git makes none: of one file, whatever its name; the commit's id."""
        blob = self.git("hash-object", "-w", "--stdin", text=text)
        for part in reversed(name.split("/")):
            mode = b"100644" if part == name.split("/")[-1] else b"40000"
            entry = mode + b" " + part.encode() + b"\0" + bytes.fromhex(blob)
            (self.folder / "tree").write_bytes(entry)
            blob = self.git("hash-object", "-t", "tree", "-w", "--literally", str(self.folder / "tree"))
        commit = self.git("commit-tree", blob, "-m", "Evil")
        self.git("push", "--quiet", "--force", "origin", f"{commit}:refs/heads/main")
        return commit

    def back_to(self, commit: str) -> None:
        """Go on from an older commit, so that the next push rewrites the branch."""
        self.git("reset", "--quiet", "--hard", commit)

    def head(self) -> str:
        """The id of the last commit."""
        return self.git("rev-parse", "HEAD")

    def git(self, *arguments: str, text: str = "") -> str:
        """Run git in the work tree, with the text as its input."""
        return self._run("-C", str(self.work), *arguments, text=text)

    def _run(self, *arguments: str, text: str = "", **environment: str) -> str:
        variables = os.environ | _ENVIRONMENT | environment
        done = subprocess.run(["git", *arguments], input=text, capture_output=True, text=True, env=variables)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": AUTHOR,
    "GIT_AUTHOR_EMAIL": MAIL,
    "GIT_COMMITTER_NAME": AUTHOR,
    "GIT_COMMITTER_EMAIL": MAIL,
}


def ssh_key(path: Path) -> Path:
    """A new key to sign with; the public half is beside it, with `.pub`."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", MAIL, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def allow(signers: Path, key: Path) -> Path:
    """An allowed-signers file (ssh-keygen(1)) with one key in it."""
    signers.write_text(f"{MAIL} {key.with_name(f'{key.name}.pub').read_text()}")
    return signers


def shim(folder: Path, name: str, script: str) -> str:
    """A program that is found before the real one of its name; the PATH to give. `$REAL` is the real one."""
    folder.mkdir(parents=True, exist_ok=True)
    real = shutil.which(name) or ""
    path = folder / name
    path.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    path.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@contextmanager
def gpg_home() -> Iterator[Path]:
    """A keyring with a key to sign with, at a short path: the agent's socket has to have a name below it."""
    with tempfile.TemporaryDirectory(prefix="gpg") as folder:
        environment = os.environ | {"GNUPGHOME": folder}
        make = [
            "gpg",
            "--batch",
            "--quiet",
            "--passphrase",
            "",
            "--quick-generate-key",
            f"{AUTHOR} <{MAIL}>",
            "ed25519",
        ]
        subprocess.run([*make, "sign", "never"], env=environment, check=True, capture_output=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=True)


@contextmanager
def daemon(root: Path) -> Iterator[str]:
    """`git daemon` on the repositories below a folder; its address."""
    port = free_port()
    command = ["git", "daemon", "--reuseaddr", "--export-all", f"--base-path={root}", "--listen=127.0.0.1"]
    process = subprocess.Popen([*command, f"--port={port}"], start_new_session=True)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None, "git daemon has ended"
                time.sleep(0.01)
        yield f"git://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
