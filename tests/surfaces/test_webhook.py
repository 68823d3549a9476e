"""Webhooks of each forge: signed ones are known wherever they are from, all others are not."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from sidecar.surfaces import webhook
from sidecar.surfaces.dataplane.errors import ApiError

SECRET = "s3cret"
BODY = b'{"ref": "refs/heads/main"}'
DIGEST = hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()

FORGES = {
    "GitHub": {"x-hub-signature-256": f"sha256={DIGEST}", "x-hub-signature": "sha1=0123"},
    "Forgejo": {"x-forgejo-signature": DIGEST},
    "Gitea": {"x-gitea-signature": DIGEST.upper()},
    "Bitbucket": {"x-hub-signature": f"sha256={DIGEST}"},
    "GitLab": {"x-gitlab-token": SECRET},
}


@pytest.mark.parametrize("forge", FORGES)
def test_each_forge_is_known(forge: str) -> None:
    assert webhook.is_webhook(FORGES[forge])
    webhook.check(FORGES[forge], BODY, SECRET)


def test_the_signature_that_github_documents_is_the_right_one() -> None:
    """docs.github.com, "Validating webhook deliveries": secret, payload and signature to test with."""
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    webhook.check({"x-hub-signature-256": signature}, b"Hello, World!", "It's a Secret to Everybody")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-hub-signature-256": "sha256=" + "0" * 64},
        {"x-hub-signature-256": ""},
        {"x-hub-signature-256": "sha256=é"},
        {"x-hub-signature": "sha1=" + hmac.new(SECRET.encode(), BODY, hashlib.sha1).hexdigest()},
        {"x-gitlab-token": "s3cre"},
        {"x-gitlab-token": ""},
        {"x-hub-signature-256": f"sha256={DIGEST}", "x-gitlab-token": "wrong"},
    ],
)
def test_what_is_not_signed_with_the_secret_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ApiError) as caught:
        webhook.check(headers, BODY, SECRET)
    assert (caught.value.status, caught.value.code) == (401, "invalid_signature")


def test_another_body_needs_another_signature() -> None:
    with pytest.raises(ApiError):
        webhook.check(FORGES["GitHub"], BODY + b" ", SECRET)


def test_an_operators_request_is_no_webhook_and_a_ping_is_one() -> None:
    assert not webhook.is_webhook({"authorization": "Bearer x", "content-type": "application/json"})
    assert webhook.is_ping({"x-github-event": "ping"})
    assert not webhook.is_ping({"x-github-event": "push"})


def test_a_token_is_compared_as_it_has_come() -> None:
    webhook.check({"x-gitlab-token": "paßword".encode().decode("latin-1")}, BODY, "paßword")


@pytest.mark.parametrize(
    ("headers", "small"),
    [
        ({"content-length": "0"}, True),
        ({"content-length": str(webhook.SMALL_BYTES)}, True),
        ({"content-length": str(webhook.SMALL_BYTES + 1)}, False),
        ({"content-length": "9" * 5000}, False),
        ({"content-length": "²"}, False),
        ({"content-length": "10", "transfer-encoding": "chunked"}, False),
        ({}, False),
    ],
)
def test_small_is_what_says_so(headers: dict[str, str], small: bool) -> None:
    assert webhook.is_small(headers) is small


def test_a_flood_is_refused_and_forgiven() -> None:
    now = 0.0
    bucket = webhook.Bucket(lambda: now)
    for _ in range(webhook.BURST):
        bucket.take()
    with pytest.raises(ApiError) as caught:
        bucket.take()
    assert (caught.value.status, caught.value.retry_after_s) == (429, 1.0)
    now = 2.5
    bucket.take()
    bucket.take()
    with pytest.raises(ApiError):
        bucket.take()
