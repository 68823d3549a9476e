"""What may be declared of a repository, when it is asked, and what is remembered."""

from __future__ import annotations

import pytest

from plugin_sdk import Duration
from sidecar.core.sourcing import (
    FIRST_RETRY_S,
    HISTORY,
    MOST_RETRY_S,
    Attempt,
    Commit,
    GitDeclaration,
    Memory,
    SecretPlace,
    faults,
    next_wait_s,
    shown,
)

URL = "https://git.example/team/manifests.git"


@pytest.mark.parametrize(
    "declared",
    [
        GitDeclaration(git=URL),
        GitDeclaration(git=URL, ref="release/2.x", path="deploy/gpu", interval=Duration(0), depth=1),
        GitDeclaration(git=URL, ref="refs/heads/main", token=SecretPlace(env="TOKEN")),
        GitDeclaration(git="ssh://git@git.example:2222/team/manifests.git", ssh_key="/key", known_hosts="/hosts"),
        GitDeclaration(git="git@git.example:team/manifests.git"),
        GitDeclaration(git="/srv/git/manifests.git", ref="0" * 40),
        GitDeclaration(git="http://127.0.0.1:3000/a.git", token=SecretPlace(file="/token")),
        GitDeclaration(git=URL, verify="signed", allowed_signers="/signers"),
    ],
)
def test_these_are_good(declared: GitDeclaration) -> None:
    assert not list(faults(declared))


@pytest.mark.parametrize(
    ("declared", "key", "message"),
    [
        (GitDeclaration(git=""), "git", "expected the address of a repository"),
        (GitDeclaration(git="--upload-pack=touch /tmp/x"), "git", "expected the address of a repository"),
        (GitDeclaration(git="https://user:pass@git.example/a.git"), "git", "a password never stands in an address"),
        (GitDeclaration(git="https://ghp_t0ken@git.example/a.git"), "git", "no name stands in an address"),
        (GitDeclaration(git="ext::ssh://x"), "git", "unknown scheme"),
        (GitDeclaration(git="ext::sh -c x"), "git", "expected the address"),
        (GitDeclaration(git="ftp://git.example/a.git"), "git", 'unknown scheme "ftp"'),
        (GitDeclaration(git="https://[::1"), "git", "is no address"),
        (GitDeclaration(git="manifests"), "git", "expected https://..."),
        (GitDeclaration(git="http://git.example/a", token=SecretPlace(env="T")), "token", "everybody on the way"),
        (GitDeclaration(git="git@git.example:a", token=SecretPlace(env="T")), "token", "is for https:// only"),
        (GitDeclaration(git=URL, token=SecretPlace()), "token", "never stands in a manifest"),
        (GitDeclaration(git=URL, ref="-x"), "ref", "expected a branch"),
        (GitDeclaration(git=URL, ref="a..b"), "ref", "expected a branch"),
        (GitDeclaration(git=URL, ref="main:evil"), "ref", "expected a branch"),
        (GitDeclaration(git=URL, path="../up"), "path", "expected a folder in the repository"),
        (GitDeclaration(git=URL, path="/etc"), "path", "expected a folder in the repository"),
        (GitDeclaration(git=URL, interval=Duration(0.5)), "interval", 'at least "1s"'),
        (GitDeclaration(git=URL, timeout=Duration(0)), "timeout", 'at least "1s"'),
        (GitDeclaration(git=URL, depth=-1), "depth", "expected 0"),
        (GitDeclaration(git=URL, verify="signed"), "verify", "signed by whom?"),
        (GitDeclaration(git=URL, allowed_signers="/x"), "verify", "mean nothing without"),
    ],
)
def test_these_are_told(declared: GitDeclaration, key: str, message: str) -> None:
    assert [(where, message in told) for where, told in faults(declared)] == [(key, True)]


def test_a_repository_that_fails_is_asked_soon_and_then_ever_more_rarely() -> None:
    waits = [next_wait_s(60.0, failures, 0.5) or 0.0 for failures in range(12)]
    assert waits[0] == 60.0
    assert waits[1] == FIRST_RETRY_S
    assert waits[1:] == sorted(waits[1:])
    assert waits[-1] == MOST_RETRY_S
    assert next_wait_s(3600.0, 40, 0.5) == 3600.0  # never more often than when all is well, in the end
    assert next_wait_s(1.0, 1, 0.5) == 1.0
    assert {next_wait_s(60.0, 0, chance) for chance in (0.0, 1.0)} == {54.0, 66.0}


def test_without_an_interval_nobody_is_asked_but_after_a_failure() -> None:
    assert next_wait_s(0.0, 0, 0.5) is None
    assert next_wait_s(0.0, 1, 0.5) == FIRST_RETRY_S


def attempt(commit: str, at: float, *reasons: str) -> Attempt:
    return Attempt(
        commit=Commit(id=commit),
        at=at,
        trigger="interval",
        outcome="rejected" if reasons else "applied",
        reasons=reasons,
    )


def test_the_same_again_is_counted_and_the_oldest_is_forgotten() -> None:
    memory = (
        Memory().with_attempt(attempt("a", 1)).with_attempt(attempt("b", 2, "bad")).with_attempt(attempt("b", 3, "bad"))
    )
    assert [(one.commit.id, one.count, one.at) for one in memory.history] == [("a", 1, 1), ("b", 2, 3)]
    memory = memory.with_attempt(attempt("b", 4, "bad in another way"))
    assert [one.count for one in memory.history] == [1, 2, 1]
    for number in range(2 * HISTORY):
        memory = memory.with_attempt(attempt(str(number), number))
    assert len(memory.history) == HISTORY
    assert memory.history[-1].commit.id == str(2 * HISTORY - 1)


def test_it_is_told_in_one_line() -> None:
    declared = GitDeclaration(git=URL, ref="main", path="deploy")
    assert shown(declared, "0123456789abcdef") == f"{URL} main:deploy @ 0123456789ab"
