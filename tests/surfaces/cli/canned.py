"""A sidecar that says what a test has it say: a real HTTP server, which can go away and come back on its port."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from plugin_sdk import DeviceStatus
from sidecar.control.events import Event
from sidecar.core.holders import Holders, Holding
from sidecar.core.observed import Condition, Status
from sidecar.mechanism.logreader import Line
from sidecar.surfaces.dataplane.plane import Requests
from sidecar.surfaces.logs_api import LogReport
from sidecar.surfaces.progress import Progress
from sidecar.surfaces.report import DeviceReport, EventsReport, ModelReport, ServerReport, StatusReport
from sidecar.surfaces.top_api import TopDevice, TopModel, TopReport


class Canned:
    """report, events, lines: what it answers; lines = None: it knows no logs. asked: each POST. no: how it refuses."""

    def __init__(self) -> None:
        self.report = REPORT
        self.events = EVENTS
        self.lines: list[str] | None = ["loading", "listening"]
        self.asked: list[str] = []
        self.no = ""
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def come(self) -> None:
        """Be there."""
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(*canned.get(self.path))

            def do_POST(self) -> None:
                self._answer(*canned.post(self.path))

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def go(self) -> None:
        """Be there no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def get(self, path: str) -> tuple[int, bytes]:
        where = urlsplit(path)
        asked = parse_qs(where.query)
        if where.path == "/-/top":
            return 200, msgspec.json.encode(self.report)
        if where.path == "/-/status":
            return 200, msgspec.json.encode(status_of(self.report))
        if where.path == "/-/events":
            after = int(asked.get("after", ["0"])[0])
            found = [event for event in self.events if event.seq > after]
            return 200, msgspec.json.encode(EventsReport(events=found, last=self.report.last_event, gap=False))
        if where.path.endswith("/logs") and self.lines is not None:
            begin = int(asked.get("after", ["0"])[0])
            lines = [Line(at=0.0, stream="err", text=text) for text in self.lines[begin:]]
            return 200, msgspec.json.encode(
                LogReport(lines=lines, next=str(len(self.lines)), gone=False, given_up=False)
            )
        return 404, _error("there is no such path", "unknown_path")

    def post(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path.removeprefix("/-/models/"))
        if self.no:
            return 503, _error(self.no, "insufficient_memory")
        *_, model, verb = path.split("/")
        return 200, json.dumps({"model": model, "state": f"{verb} done", "message": ""}).encode()


@contextmanager
def canned() -> Iterator[Canned]:
    """One that is there."""
    found = Canned()
    found.come()
    try:
        yield found
    finally:
        found.go()


def _error(message: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "code": code}}).encode()


DEVICES = (
    TopDevice(
        label="nvidia:0",
        name="NVIDIA H100 80GB HBM3",
        utilisation_pct=87.0,
        temperature_c=64.0,
        power_w=512.0,
        holders=Holders(
            total_mb=81559,
            ours_mb=42100,
            foreign_mb=6200,
            reserved_mb=14500,
            free_mb=18759,
            told=True,
            servers=(
                Holding(model="qwen3-32b", reserved_mb=36000, used_mb=34600),
                Holding(model="bge-m3", reserved_mb=2500, used_mb=2400),
                Holding(model="llama-3.3-70b", reserved_mb=18200, used_mb=5100),
            ),
        ),
    ),
    TopDevice(label="nvidia:1", name="NVIDIA H100 80GB HBM3", problem="NVML: GPU is lost"),
    TopDevice(
        label="cpu",
        name="CPU",
        holders=Holders(
            total_mb=257000,
            ours_mb=0,
            foreign_mb=21000,
            reserved_mb=0,
            free_mb=236000,
            told=True,
        ),
    ),
)
MODELS = (
    TopModel(
        name="qwen3-32b",
        state="ready",
        variant="one-gpu",
        devices=("nvidia:0",),
        port=41000,
        memory_mb=34600,
        reserved_mb=36000,
        in_flight=7,
        requests=1000,
        tokens_in=1_000_000,
        tokens_out=200_000,
        pinned="operator",
    ),
    TopModel(
        name="llama-3.3-70b",
        state="starting",
        variant="q4",
        devices=("nvidia:0",),
        port=41001,
        memory_mb=5100,
        reserved_mb=18200,
        waiting=3,
        loading=Progress(
            since_s=21.0,
            expected_s=74.0,
            timeout_s=600.0,
            model_mb=39700,
            model_read_mb=11116,
            memory_mb=5100,
            declared_mb=18200,
            done=0.28,
        ),
    ),
    TopModel(
        name="bge-m3",
        state="ready",
        variant="default",
        devices=("nvidia:0",),
        port=41002,
        memory_mb=2400,
        reserved_mb=2500,
        in_flight=1,
        requests=5000,
        tokens_in=600_000,
    ),
    TopModel(name="whisper", state="elsewhere", in_flight=2, requests=40),
    TopModel(
        name="broken",
        state="failed",
        because="given up after 10 attempts, until its manifest changes or somebody starts it: exit code 1",
    ),
    TopModel(name="gemma-3-27b", state="stopped", because="starts on demand"),
    TopModel(
        name="old-model", state="stopped", because="an operator has taken it out of service", drained=True, requests=3
    ),
)
EVENTS = [
    Event(
        seq=1 + number,
        at=1_790_000_000.0 + number,
        type=kind,
        model=model,
        reason="",
        message=message,
        server="",
        revision="",
        first_at=1_790_000_000.0 + number,
    )
    for number, (kind, model, message) in enumerate(
        [
            ("RevisionApplied", "", "7 models, 0 problems"),
            ("Failed", "broken", "variant default failed (Exited), given up"),
            ("Started", "llama-3.3-70b", "variant q4 fits on nvidia:0"),
            ("Pinned", "qwen3-32b", "an operator has pinned it: it is neither evicted nor stopped for being idle"),
        ]
    )
]
REPORT = TopReport(
    version="0.1.0",
    pid=4711,
    at=1_790_000_000.0,
    clock=100.0,
    revision="6335d6b6f5f6",
    problems=0,
    connections=10,
    last_event=4,
    devices=DEVICES,
    models=MODELS,
)


def later(report: TopReport, seconds: float = 10.0) -> TopReport:
    """What the same sidecar says after so many seconds, in which its models were at work."""
    models = tuple(
        msgspec.structs.replace(
            model,
            requests=model.requests + int(model.in_flight * seconds / 2),
            tokens_in=model.tokens_in + int(model.in_flight * seconds * 300),
            tokens_out=model.tokens_out + int(model.in_flight * seconds * 60) * bool(model.tokens_out),
        )
        for model in report.models
    )
    return msgspec.structs.replace(report, clock=report.clock + seconds, models=models)


def status_of(report: TopReport) -> StatusReport:
    """The status of the same sidecar."""
    return StatusReport(
        version=report.version,
        uptime_s=187_260.0,
        generation=4,
        attempted=report.revision,
        applied=report.revision,
        problems=(),
        kept=(),
        devices=tuple(map(_device, report.devices)),
        device_problems={},
        models=tuple(map(_model, report.models)),
        plugins=(),
        requests=Requests(),
        rounds=1000,
        acted=12,
        errors=0,
    )


def _device(device: TopDevice) -> DeviceReport:
    held = device.holders
    status = DeviceStatus(
        id=device.label,
        name=device.name,
        total_mb=held.total_mb if held else 0,
        free_mb=held.free_mb + held.reserved_mb if held else 0,
        problem=device.problem,
        utilisation_pct=device.utilisation_pct,
        temperature_c=device.temperature_c,
        power_w=device.power_w,
    )
    reserved = sum(one.reserved_mb for one in held.servers) if held else 0
    usable = held.total_mb - 256 if held else None
    return DeviceReport(device_class="", label=device.label, status=status, usable_mb=usable, reserved_mb=reserved)


def _model(model: TopModel) -> ModelReport:
    server = None
    if model.variant:
        server = ServerReport(
            id=f"{model.name}-1",
            state=model.state,
            variant=model.variant,
            devices=model.devices,
            port=model.port,
            pid=4800,
            in_flight=model.in_flight,
            reserved_mb={"nvidia:0": model.reserved_mb},
            observed_mb={"nvidia:0": model.memory_mb or 0},
            loading=model.loading,
        )
    why = Condition(type="Ready", status=Status.FALSE, reason="Stopped", message=model.because)
    return ModelReport(
        name=model.name,
        aliases=(),
        modes=("embedding",)
        if model.name == "bge-m3"
        else ("transcription",)
        if model.name == "whisper"
        else ("chat",),
        state=model.state,
        waiting=model.waiting,
        server=server,
        conditions=(why,) if model.because else (),
        pinned=model.pinned,
        drained=model.drained,
    )
