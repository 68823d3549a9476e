"""A git repository as the source of manifests: what is declared of it, what came of its commits, when to ask again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from plugin_sdk import ByteSize, Duration, Secret
from sidecar.core.manifest import Table

SCHEMES = ("https", "http", "ssh", "git", "file")
HISTORY = 50  # attempts that are remembered
REASONS = 20  # of a rejected commit that are remembered
FIRST_RETRY_S = 5.0
MOST_RETRY_S = 300.0
REJECTED_S = 600.0  # after which a rejected commit is looked at again: keys, secrets and packages may be there by then
JITTER = 0.1  # of each wait, up and down, so that a fleet does not ask in step

_OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SCP = re.compile(r"(?:[^@/:]+@)?[^/:]+:.+")  # git's short form for ssh: git@host:team/repo.git
_BAD_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|\.lock(?:/|$)|^[-/.]|[/.]$")  # git-check-ref-format(1)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class SecretPlace(Table, frozen=True):
    """Where a secret is: `{ env = "NAME" }` or `{ file = "PATH" }`. Read anew each time, since tokens are replaced."""

    env: str = ""
    file: str = ""

    def read(self) -> Secret:
        """The secret as it is now. Raises ValueError."""
        return Secret.resolve({key: value for key, value in (("env", self.env), ("file", self.file)) if value})


class GitDeclaration(Table, frozen=True):
    """`[source]` of a bootstrap file. All paths but `path`, which is in the repository, are of this machine.

    ref: a branch, a tag, a full name below refs/, a commit, or "HEAD". depth: of history to be had; 0 = all of it.
    max_size: of all files of a commit, and of each file of the clone.
    accept: whether a commit with problems is rejected whole, or taken over as far as it is good.
    state_dir: below it, in `source/`, are the clone, the checkouts and the history.
    """

    git: str
    ref: str = "HEAD"
    path: str = ""
    interval: Duration = Duration(60)
    timeout: Duration = Duration(120)
    depth: int = 0
    max_size: ByteSize = ByteSize(256 * 2**20)
    accept: Literal["whole", "parts"] = "whole"
    verify: Literal["none", "signed"] = "none"
    allowed_signers: str = ""
    gpg_home: str = ""
    token: SecretPlace | None = None
    username: str = ""
    ssh_key: str = ""
    known_hosts: str = ""
    ca_file: str = ""
    webhook_secret: SecretPlace | None = None
    state_dir: str = "~/.local/state/sidecar"

    @property
    def is_commit(self) -> bool:
        """Whether `ref` names a commit, which never moves."""
        return bool(_OBJECT.fullmatch(self.ref))

    @property
    def secrets(self) -> tuple[tuple[str, SecretPlace], ...]:
        """The secrets that are declared, by key."""
        found = (("token", self.token), ("webhook_secret", self.webhook_secret))
        return tuple((key, place) for key, place in found if place is not None)


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """A commit, in words. at: when it was committed, in seconds since 1970."""

    id: str
    author: str = ""
    subject: str = ""
    at: float = 0.0


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """What has come of a commit. at: when, in seconds since 1970. trigger: what has led to it.

    reasons: why it was rejected, or what of it was not taken over. revision: the hash of the manifests' content.
    signed_by: whoever `verify` has found to have signed it. rewritten: the commit before is not among its ancestors.
    count: how often in a row it came to the same.
    """

    commit: Commit
    at: float
    trigger: str
    outcome: Literal["applied", "rejected"]
    reasons: tuple[str, ...] = ()
    revision: str = ""
    signed_by: str = ""
    rewritten: bool = False
    count: int = 1


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered over restarts. history: the newest last. head: what the ref was when it was last asked for."""

    git: str = ""
    ref: str = ""
    head: str = ""
    pinned: str = ""
    suspended: bool = False
    history: tuple[Attempt, ...] = ()

    def with_attempt(self, attempt: Attempt) -> Memory:
        """Add one; the same again is counted, not added."""
        *older, last = (None, *self.history)
        same = last is not None and _outcome(last) == _outcome(attempt)
        if last is not None and same:
            attempt = msgspec.structs.replace(attempt, count=last.count + 1)
        before = [one for one in (*older, None if same else last) if one is not None]
        return msgspec.structs.replace(self, history=(*before, attempt)[-HISTORY:])

    def last(self, outcome: str) -> Attempt | None:
        """The newest attempt with that outcome."""
        return next((one for one in reversed(self.history) if one.outcome == outcome), None)


def _outcome(attempt: Attempt) -> tuple[str, str, tuple[str, ...]]:
    return attempt.commit.id, attempt.outcome, attempt.reasons


def next_wait_s(interval_s: float, failures: int, chance: float) -> float | None:
    """How long to wait until the repository is asked again; None = until somebody says so.

    failures: in a row. chance: from 0 to 1. A repository that does not answer is asked sooner at first, then ever more
    rarely.
    """
    if failures:
        first_s = min(interval_s or FIRST_RETRY_S, FIRST_RETRY_S)
        wait_s = min(max(interval_s, MOST_RETRY_S), first_s * 2.0 ** min(failures - 1, 30))
    elif interval_s:
        wait_s = interval_s
    else:
        return None
    return wait_s * (1 + JITTER * (2 * chance - 1))


def shown(declared: GitDeclaration, commit: str = "") -> str:
    """`https://git.example/team/manifests.git main:manifests @ 0123456789ab`."""
    place = f"{declared.ref}:{declared.path}" if declared.path else declared.ref
    return f"{declared.git} {place}" + (f" @ {commit[:12]}" if commit else "")


def is_commit_name(text: str) -> bool:
    """Whether it may be the beginning of a commit's id that is long enough to mean one."""
    return 7 <= len(text) <= 64 and all(character in "0123456789abcdef" for character in text)


def faults(declared: GitDeclaration) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it)."""
    yield from _url_faults(declared)
    if not declared.is_commit and (not declared.ref or declared.ref == "@" or _BAD_REF.search(declared.ref)):
        yield "ref", f'expected a branch, a tag, a commit or a name below refs/, got "{declared.ref}"'
    if declared.path.startswith(("/", "-")) or any(part in ("..", ".git") for part in declared.path.split("/")):
        yield "path", f'expected a folder in the repository, such as "manifests", got "{declared.path}"'
    if 0 < declared.interval < 1:
        yield "interval", 'expected at least "1s", or "0s" for no asking without a webhook or a command'
    if declared.timeout < 1:
        yield "timeout", 'expected at least "1s"'
    if declared.depth < 0:
        yield "depth", "expected 0 (all of the history) or more"
    if declared.max_size < 2**16:
        yield "max_size", 'expected at least "64KiB"'
    yield from _trust_faults(declared)


def _trust_faults(declared: GitDeclaration) -> Iterator[tuple[str, str]]:
    signers = declared.allowed_signers or declared.gpg_home
    if declared.verify == "signed" and not signers:
        yield "verify", "signed by whom? allowed_signers (a file, ssh-keygen(1)) or gpg_home (a keyring) must say so"
    if declared.verify == "none" and signers:
        yield "verify", 'allowed_signers and gpg_home mean nothing without verify = "signed"'
    for key, place in declared.secrets:
        if bool(place.env) == bool(place.file):
            yield key, 'expected { env = "NAME" } or { file = "PATH" }: a secret never stands in a manifest'


def _url_faults(declared: GitDeclaration) -> Iterator[tuple[str, str]]:
    url = declared.git
    if not url or url.startswith("-") or any(character.isspace() or not character.isprintable() for character in url):
        yield "git", f"expected the address of a repository, got {url!r}"
        return
    if "://" not in url:
        if not url.startswith(("/", "~/", "./", "../")) and (not _SCP.fullmatch(url) or "::" in url):
            yield "git", f'expected https://..., ssh://..., git@HOST:PATH or the path of a repository, got "{url}"'
        if declared.token is not None:
            yield "token", "is for https:// only"
        return
    try:
        parts = urlsplit(url)
        host, password = parts.hostname or "", parts.password
    except ValueError as error:
        yield "git", f"is no address: {error}"
        return
    if parts.scheme not in SCHEMES:
        yield "git", f'unknown scheme "{parts.scheme}"; known: {", ".join(SCHEMES)}'
    if password is not None:
        yield "git", "a password never stands in an address: give it as token = { env = ... } or { file = ... }"
    elif parts.username is not None and parts.scheme in ("https", "http"):  # many a token is given as one
        yield "git", "no name stands in an address, as many a token is one: [source] has username and token"
    if declared.token is not None and parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        yield "token", f"is for https:// only: over {parts.scheme}:// everybody on the way could read it"


class SourceReport(msgspec.Struct, frozen=True, kw_only=True):
    """Where the manifests in force are from.

    kind: "directory", "git work tree", "git-sync link", "ConfigMap", or "git" for a repository that the sidecar itself
    fetches. place: the folder or the address. commit: the one in force, or the name of the ConfigMap's version, "" if
    there is none to be known. Only a fetched repository has the rest; times are in seconds since 1970.
    state: "in sync", "pinned", "suspended", "rejected" or "failing", with the reasons in `messages`. head: what the ref
    was last. attempted: the last commit that was to be taken over. unsaved: why the history cannot be written down.
    """

    kind: str
    place: str
    commit: str = ""
    ref: str = ""
    path: str = ""
    state: str = ""
    messages: tuple[str, ...] = ()
    head: str = ""
    attempted: str = ""
    pinned: str = ""
    suspended: bool = False
    verify: str = ""
    failures: int = 0
    asked_at: float | None = None
    answered_at: float | None = None
    next_at: float | None = None
    unsaved: str = ""


class HistoryReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the last commits, the newest last. commit: the one in force."""

    commit: str
    history: tuple[Attempt, ...]
