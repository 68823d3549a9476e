"""Runs the git command, with a deadline, bounded output, and nothing of the user's or the system's configuration.

Credentials reach git by its environment or by files, never by its arguments, which everybody on the machine can read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import resource
import shlex
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from sidecar.core.names import printable
from sidecar.core.sourcing import SCHEMES, GitDeclaration

LEAST_VERSION = (2, 32)  # GIT_CONFIG_GLOBAL
SIGNED_VERSION = (2, 34)  # signatures of ssh keys
OUTPUT_BYTES = 32 * 2**20
MESSAGE_CHARS = 600
END_S = 2.0  # for what is left in the pipes of a git that was killed
DEFAULT_USER = "x-access-token"  # GitHub's; other forges take any name beside a token

_PASSED_ON = (
    "PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO",
    "http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
)  # fmt: skip
_NONE = "/dev/null"
_NOBODY = "/bin/false"


class GitError(Exception):
    """git said no, or nothing within the deadline. The text is for people, and without secrets."""


class TooMuchError(GitError):
    """git has printed more than anybody would read."""


class Output(msgspec.Struct, frozen=True):
    """What a command has printed. status: its exit code."""

    status: int
    out: bytes
    err: str


class Git:
    """The git command, for one repository. `declared` says how to reach it and whom to trust."""

    def __init__(self, declared: GitDeclaration, environment: Mapping[str, str]) -> None:
        self._declared = declared
        self._environment = environment

    async def version(self) -> tuple[int, ...]:
        """Raises GitError if there is no git, or one that is too old for what is declared."""
        try:
            text = (await self.run("version")).out.decode(errors="replace").strip()
        except FileNotFoundError:
            raise GitError("there is no git here: install it (apt-get install git)") from None
        numbers = text.removeprefix("git version ").split(".")[:2]
        found = tuple(int(number) for number in numbers if number.isdecimal())
        least = SIGNED_VERSION if self._declared.verify == "signed" else LEAST_VERSION
        if found < least:
            raise GitError(f"{text} is too old: at least {least[0]}.{least[1]} is needed")
        return found

    async def run(
        self,
        *arguments: str,
        folder: Path | None = None,
        secrets: bool = False,
        ok: Iterable[int] = (0,),
        extra: Mapping[str, str] | None = None,
    ) -> Output:
        """Run a command to its end. Raises GitError, unless its exit code is in `ok`, and OSError.

        folder: the repository. secrets: it speaks to the server, and may need them. extra: of its environment.
        """
        where = () if folder is None else (f"--git-dir={folder}",)
        process = await asyncio.create_subprocess_exec(
            "git",
            *where,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            cwd="/",  # not in somebody's repository, whose configuration would count
            env=self._variables(secrets) | dict(extra or {}),
            start_new_session=True,
        )
        try:
            _limit(process, self._declared.max_size)
            async with asyncio.timeout(self._declared.timeout):
                output = await _communicate(process)
        except TimeoutError:
            raise GitError(f"git {arguments[0]} did not end within {self._declared.timeout:g} s") from None
        finally:
            await _end(process)
        if output.status not in tuple(ok):
            raise GitError(self._told(arguments[0], output))
        return output

    def _told(self, command: str, output: Output) -> str:
        if f"died of signal {signal.SIGXFSZ:d}" in output.err or "File too large" in output.err:
            return f"git {command}: there is more than max_size ({self._declared.max_size} bytes) to fetch"
        lines = [line.strip() for line in output.err.splitlines() if line.strip()]
        telling = [line for line in lines if line.startswith(("fatal:", "error:", "ERROR:"))] or lines
        text = "; ".join(dict.fromkeys(telling))[-MESSAGE_CHARS:] or f"exit code {output.status}"
        return f"git {command}: {printable(self._without_secrets(text))}"

    def _without_secrets(self, text: str) -> str:
        for _, place in self._declared.secrets:
            with contextlib.suppress(ValueError):
                text = text.replace(place.read().reveal(), "***")
        return text

    # --- the environment ----------------------------------------------------------------------------------------

    def _variables(self, secrets: bool) -> dict[str, str]:
        kept = {name: self._environment[name] for name in _PASSED_ON if name in self._environment}
        declared = self._declared
        settings = self._settings() | (self._credentials() if secrets else {})
        variables = kept | {
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "SSH_ASKPASS": "",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_SYSTEM": _NONE,
            "GIT_CONFIG_GLOBAL": _NONE,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_ALLOW_PROTOCOL": ":".join(SCHEMES),
            "GIT_SSH_COMMAND": self._ssh(),
            "GIT_CONFIG_COUNT": str(len(settings)),
        }
        for number, (key, value) in enumerate(settings.items()):
            variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        if declared.ca_file:
            variables["GIT_SSL_CAINFO"] = declared.ca_file
        if declared.gpg_home:
            variables["GNUPGHOME"] = declared.gpg_home
        return variables

    def _settings(self) -> dict[str, str]:
        """Signatures of a kind for which nobody is trusted are checked by a program that says no."""
        declared = self._declared
        signers = declared.allowed_signers
        return {
            "core.hooksPath": _NONE,
            "core.attributesFile": _NONE,
            "core.autocrlf": "false",
            "core.fsmonitor": "false",
            "core.fsync": "committed,loose-object,reference",  # a power cut must not leave an empty object
            "core.protectHFS": "true",
            "core.protectNTFS": "true",
            "credential.helper": "",
            "gc.auto": "0",
            "gc.autoDetach": "false",
            "maintenance.auto": "false",
            "safe.directory": "*",  # the clone is in our own state directory
            "http.lowSpeedLimit": "1000",
            "http.lowSpeedTime": "30",
            "http.followRedirects": "false" if declared.token else "initial",  # a redirect would get the token, too
            "gpg.ssh.allowedSignersFile": signers or _NONE,
            "gpg.ssh.program": "ssh-keygen" if signers else _NOBODY,
            "gpg.program": "gpg" if declared.gpg_home else _NOBODY,
            "gpg.x509.program": _NOBODY,
        }

    def _credentials(self) -> dict[str, str]:
        """Raises GitError if the token cannot be had."""
        declared = self._declared
        if declared.token is None:
            return {}
        try:
            token = declared.token.read().reveal()
        except ValueError as error:
            raise GitError(f"token: {error}") from None
        pair = base64.b64encode(f"{declared.username or DEFAULT_USER}:{token}".encode()).decode()
        return {"http.extraHeader": f"Authorization: Basic {pair}"}

    def _ssh(self) -> str:
        """Asks nothing, and knows its hosts. git hands this to a shell, so what is in it is quoted."""
        declared = self._declared
        words = ["ssh", "-F", _NONE, "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=15"]
        words += ["-oServerAliveInterval=15", "-oServerAliveCountMax=2"]
        if declared.known_hosts:
            words.append(f"-oUserKnownHostsFile={declared.known_hosts}")
        if declared.ssh_key:
            words += ["-oIdentitiesOnly=yes", "-i", declared.ssh_key]
        return shlex.join(words)


def _limit(process: Process, size: int) -> None:
    """No pack may fill the disk; what git starts inherits this. A limit of ours that is lower stays."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = size if most == resource.RLIM_INFINITY else min(size, most)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))


async def _communicate(process: Process) -> Output:
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("git was started without pipes")
    out, err = await asyncio.gather(_read(process.stdout), _read(process.stderr))
    return Output(await process.wait(), out, err.decode(errors="replace"))


async def _read(stream: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await stream.read(65536):
        size += len(part)
        if size > OUTPUT_BYTES:
            raise TooMuchError(f"git has printed more than {OUTPUT_BYTES // 2**20} MiB")
        parts.append(part)
    return b"".join(parts)


async def _end(process: Process) -> None:
    """The whole group: git leaves the speaking to helpers, which would go on without it."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):  # a helper that has left the group may hold the pipes
        async with asyncio.timeout(END_S):
            for stream in (process.stdout, process.stderr):
                while stream is not None and await stream.read(65536):
                    pass
            await process.wait()  # which does not return before the pipes are closed
