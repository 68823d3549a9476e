"""Large bodies are passed on while they come, and so are never held; what is wrong is never complete (promise 22)."""

from __future__ import annotations

import hashlib
import json
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.upstream import PATIENCE_S, Exchange
from tests.conformance.world import AUTHORIZED, Client, World, answer, chunked, post, world
from tests.e2e.conftest import free_block
from tests.e2e.harness import stub, until

MB = 1 << 20
LARGE = 20 * MB
HUGE = 48 * MB  # more than the system's buffers hold on both ways
MAX_BODY = 56 * MB
BEGUN = 1 * MB  # more than is gathered before it is passed on

CHUNKED = "Transfer-Encoding: chunked"
FORM = "Content-Type: multipart/form-data; boundary=cut"

# A model whose requests are told, two whose bodies a plugin or the mode sees, and one that has to be started.
TOLD = """
from plugin_sdk import Endpoint, Exchange, Filter, Interface, Outcome, Request, Stats, inline

class Told(Stats):
    @inline
    def record(self, outcome: Outcome) -> None:
        self.log.info("%s took %d bytes", outcome.end.value, outcome.bytes_in)

class Seen(Filter):
    async def on_request(self, exchange: Exchange) -> None:
        self.log.info("seen: %d bytes", len(exchange.request.body))

class Strict(Interface):
    provides = "strict"
    endpoints = (Endpoint("/v1/strict", "strict"),)

    def validate(self, request: Request) -> None:
        self.log.info("strict: %d bytes", len(request.body))
"""
MODELS = """
[plugins.told]
import = "uploads:Told"
[plugins.seen]
import = "uploads:Seen"

[plugins.strict]
import = "uploads:Strict"

[models.told]
mode = "chat"
chain = ["told"]
variants = [{ url = "{upstream}" }]

[models.seen]
mode = "chat"
chain = ["seen"]
variants = [{ url = "{upstream}" }]

[models.strict]
mode = "strict"
chain = []
variants = [{ url = "{upstream}" }]
""" + stub("cold", "--delay-bind", "0.3", model="chain = []")


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "manifests" / "plugins").mkdir(parents=True)
    (folder / "manifests" / "plugins" / "uploads.py").write_text(TOLD)
    with world(folder, free_block(), max_body=MAX_BODY, models=MODELS) as made:
        yield made


@pytest.fixture
def here(uploads: World) -> Iterator[World]:
    """A sidecar that takes large bodies, and whose clients have all gone."""
    yield uploads
    uploads.reset()


def text(size: int) -> bytes:
    """So many bytes that are all different from what is before and after them."""
    block = hashlib.shake_128(b"upload").hexdigest(32 * 1024).encode()
    return (block * (size // len(block) + 1))[:size]


def json_body(size: int, model: str = "plain", *, last: bool = False) -> bytes:
    """An object with a long text, before or after which it names the model."""
    named, long = b'"model":"%b"' % model.encode(), b'"text":"%b"' % text(size)
    return b"{%b}" % b",".join((long, named) if last else (named, long))


def form_body(size: int, model: str = "plain", *, last: bool = False) -> bytes:
    """A form with a large file, before or after which it names the model."""
    field = b'--cut\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % model.encode()
    file = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n' % text(size)
    return b"".join((file, field) if last else (field, file)) + b"--cut--\r\n"


def sha(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def begin(here: World, sent: bytes) -> tuple[Client, Exchange]:
    """A client that has sent a part of a request, and what of it has reached the upstream already."""
    client = here.connect()
    client.send(sent)
    return client, here.upstream.take_head()


def pour(data: bytes, *clients: Client) -> list[int]:
    """Have them all send until nobody takes any more for a while; how much that was."""
    sent, view = dict.fromkeys((client.socket for client in clients), 0), memoryview(data)
    for one in sent:
        one.settimeout(0)
    while writable := select.select([], [one for one in sent if sent[one] < len(data)], [], 0.2)[1]:
        for one in writable:
            sent[one] += one.send(view[sent[one] : sent[one] + MB])
    for one in sent:
        one.settimeout(PATIENCE_S)
    return list(sent.values())


def rss_mb(here: World) -> float:
    """The memory of the sidecar."""
    status = Path(f"/proc/{here.sidecar.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


# --- what comes through -----------------------------------------------------------------------------------------


BODIES: dict[str, tuple[Callable[..., bytes], bool, str]] = {
    "JSON, the model first": (json_body, False, "Content-Type: application/json"),
    "JSON, the model last": (json_body, True, "Content-Type: application/json"),
    "a form, the model first": (form_body, False, FORM),
    "a form, the model last": (form_body, True, FORM),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("renamed", [False, True])
def test_a_large_body_comes_through_to_the_byte(here: World, kind: str, in_chunks: bool, renamed: bool) -> None:
    make, last, content_type = BODIES[kind]
    size = LARGE if kind == "JSON, the model first" else 2 * MB
    body = make(size, "keyed" if renamed else "plain", last=last)
    wanted = body.replace(b"keyed", b"org/inner")
    framed = chunked(body[:1000], body[1000 : size - 1000], body[size - 1000 :]) if in_chunks else body
    client = here.connect()
    client.send(post(framed, content_type, AUTHORIZED, *([CHUNKED] if in_chunks else []), length=not in_chunks))
    asked = here.upstream.take()
    assert asked.whole
    assert sha(asked.body) == sha(wanted)
    framing = asked.values(b"transfer-encoding") if in_chunks else asked.values(b"content-length")
    assert framing == [b"chunked" if in_chunks else b"%d" % len(wanted)]
    asked.send(answer())
    assert client.answer().status == 200
    client.send(post())
    here.upstream.take().send(answer(b"again"))
    assert client.answer().body == b"again"


@pytest.mark.parametrize("kind", ["JSON, the model first", "a form, the model first"])
def test_a_server_sees_the_first_bytes_before_the_last_have_come(here: World, kind: str) -> None:
    make, _, content_type = BODIES[kind]
    whole = post(make(2 * MB), content_type)
    client, asked = begin(here, whole[:BEGUN])
    until(lambda: len(asked.body) > BEGUN // 2, "what has come is passed on")
    assert not asked.whole
    client.send(whole[BEGUN:])
    until(lambda: asked.whole, "the rest is passed on")
    asked.send(answer())
    assert client.answer().status == 200


def test_a_body_that_names_its_model_last_is_passed_on_when_it_has(here: World) -> None:
    body = json_body(2 * MB, last=True)
    whole = post(body[:-1] + b',"more":"' + text(MB) + b'"}')
    client = here.connect()
    client.send(whole[: 2 * MB])
    here.barrier()
    assert not here.upstream.waiting()
    client.send(whole[2 * MB : -100])
    asked = here.upstream.take_head()
    assert not asked.whole
    client.send(whole[-100:])
    assert asked.settled.wait(PATIENCE_S)
    asked.send(answer())
    assert client.answer().status == 200


@pytest.mark.parametrize(("model", "path"), [("seen", "/v1/chat/completions"), ("strict", "/v1/strict")])
def test_a_body_that_a_plugin_or_the_mode_reads_is_gathered_for_it(here: World, model: str, path: str) -> None:
    body = json_body(MB, model)
    whole = post(body, path=path)
    client = here.connect()
    client.send(whole[:-1])
    here.barrier()
    assert not here.upstream.waiting()
    client.send(whole[-1:])
    asked = here.upstream.take()
    assert sha(asked.body) == sha(body)
    assert any(f"{model}: {len(body)} bytes" in line for line in here.sidecar.log)
    asked.send(answer())
    assert client.answer().status == 200


def test_what_was_told_of_a_large_body_is_its_size(here: World) -> None:
    body = json_body(MB, "told")
    client = here.connect()
    client.send(post(chunked(body), CHUNKED, length=False))
    here.upstream.take().send(answer())
    assert client.answer().status == 200
    until(lambda: any(f"ok took {len(body)} bytes" in line for line in here.sidecar.log), "the outcome is told")


def test_a_large_body_that_waits_to_be_wanted_is_passed_on(here: World) -> None:
    head, _, body = post(json_body(MB), "Expect: 100-continue").partition(b"\r\n\r\n")
    client = here.connect()
    client.send(head + b"\r\n\r\n")
    assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.received = b""
    client.send(body)
    asked = here.upstream.take()
    assert asked.values(b"expect") == []
    asked.send(answer())
    assert client.answer().status == 200
    client.send(post())
    here.upstream.take().send(answer())
    assert client.answer().status == 200


def test_a_request_right_behind_a_large_one_is_the_next(here: World) -> None:
    body = json_body(2 * MB)
    client, first = here.ask(post(body) + post(json_body(MB)) + post())
    assert sha(first.body) == sha(body)
    here.barrier()
    assert not here.upstream.waiting()
    for size in (MB, 0):
        first.send(answer(b"%d" % size))
        first = here.upstream.take()
        assert len(first.body) >= size
        assert client.answer().body == b"%d" % size
    first.send(answer())
    assert client.answer().status == 200


# --- what is not in order ---------------------------------------------------------------------------------------


WRONG = {
    "a second model": (b',"model":"other"}', "invalid_json"),
    "no end": (b',"more":"', "invalid_json"),
    "something behind it": (b"} x", "invalid_json"),
}


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("end", WRONG)
def test_what_is_wrong_at_the_end_is_refused_and_never_whole_for_the_server(
    here: World, end: str, in_chunks: bool
) -> None:
    rest, code = WRONG[end]
    body = json_body(MB)[:-1] + rest
    sent = post(chunked(body), CHUNKED, length=False) if in_chunks else post(body)
    client, asked = begin(here, sent)
    got = client.answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (400, code)
    assert asked.settled.wait(PATIENCE_S)
    assert not asked.whole


def test_a_chunk_that_is_none_is_refused_and_never_whole_for_the_server(here: World) -> None:
    whole = post(chunked(json_body(MB)), CHUNKED, length=False)
    client, asked = begin(here, whole[:-5] + b"nonsense\r\n\r\n")
    assert client.answer().status == 400
    client.rest()
    asked.wait_gone()
    assert not asked.whole


def test_chunks_that_become_too_large_are_cut_off_though_some_were_passed_on(here: World) -> None:
    client, asked = begin(here, post(b"%x\r\n" % (2 * MAX_BODY) + json_body(MB)[:-2], CHUNKED, length=False))
    while not select.select([client.socket], [], [], 0)[0]:
        client.send(text(MB))
    got = client.answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (413, "body_too_large")
    assert got.values(b"connection") == [b"close"]
    client.rest()
    asked.wait_gone()
    assert not asked.whole


def test_whoever_may_not_ask_is_told_before_all_has_come(here: World) -> None:
    client = here.connect()
    client.send(post(json_body(2 * MB, "keyed"), "Authorization: Bearer wrong")[:BEGUN])
    assert client.answer().status == 401
    client.rest()
    assert here.quiet() == []


# --- those who leave --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_in_the_middle_is_cancelled_upstream(here: World, reset: bool) -> None:
    client, asked = begin(here, post(json_body(2 * MB))[:BEGUN])
    here.barrier()
    left = time.monotonic()
    client.close(reset=reset)
    assert asked.wait_gone() - left < 0.3
    assert not asked.whole


def test_a_client_that_leaves_while_it_is_not_read_is_noticed(here: World) -> None:
    client, asked = begin(here, post(json_body(HUGE, "told"))[:BEGUN])
    asked.stall()
    pour(text(HUGE), client)
    client.close(reset=True)
    until(lambda: any("client_gone took" in line for line in here.sidecar.log), "it is noticed")
    asked.go_on()
    asked.wait_gone()
    assert not asked.whole


def test_a_server_that_dies_in_the_middle_is_not_asked_again(here: World) -> None:
    client, asked = begin(here, post(json_body(2 * MB))[:BEGUN])
    asked.reset()
    assert client.answer().status == 502
    client.rest()
    assert len(here.quiet()) == 1


def test_an_upload_has_a_connection_that_was_not_used_before(here: World) -> None:
    """One that was may be closed in the very moment, and a body cannot be passed on twice."""
    client, before = here.ask(post())
    before.send(answer())
    client.answer()
    client.send(post(json_body(MB)))
    asked = here.upstream.take()
    assert asked.connection is not before.connection
    asked.send(answer())
    assert client.answer().status == 200


def test_an_answer_that_comes_before_the_end_is_passed_on(here: World) -> None:
    client, asked = begin(here, post(json_body(2 * MB))[:BEGUN])
    asked.send(answer(b"too much", status="413 Too Large"))
    got = client.answer()
    assert (got.status, got.body, got.values(b"connection")) == (413, b"too much", [b"close"])
    client.send(text(MB))
    client.rest()
    assert not client.was_reset
    asked.wait_gone()
    assert not asked.whole


# --- those who are slow -----------------------------------------------------------------------------------------


def test_uploads_to_a_server_that_does_not_read_are_not_read_either_and_go_on_later(here: World) -> None:
    whole = post(json_body(HUGE))
    uploading = [begin(here, whole[:BEGUN]) for _ in range(8)]
    before = rss_mb(here)
    for _, asked in uploading:
        asked.stall()
    sent = pour(whole[BEGUN:], *(client for client, _ in uploading))
    assert max(sent) < HUGE - BEGUN
    assert rss_mb(here) - before < 10
    client, asked = uploading[0]
    sending = threading.Thread(target=client.send, args=(whole[BEGUN + sent[0] :],))
    sending.start()
    asked.go_on()
    assert asked.settled.wait(PATIENCE_S)
    sending.join()
    assert sha(asked.body) == sha(whole[-len(asked.body) :])
    asked.send(answer())
    assert client.answer().status == 200
    assert rss_mb(here) - before < 10


def test_an_upload_for_a_server_that_has_to_be_started_is_not_read_until_it_is_there(here: World) -> None:
    whole = post(json_body(HUGE, "cold"))
    client = here.connect()
    before = rss_mb(here)
    sent = pour(whole, client)[0]
    assert sent < HUGE
    assert rss_mb(here) - before < 10
    client.send(whole[sent:])
    assert client.answer().status == 200


def test_every_request_is_accounted_for(here: World) -> None:
    """This one, and those of all these tests."""
    client, asked = here.ask(post(json_body(MB)))
    assert here.sidecar.status()["requests"]["in_flight"] == 1
    asked.send(answer())
    assert client.answer().status == 200
    assert here.sidecar.status()["requests"]["in_flight"] == 0
