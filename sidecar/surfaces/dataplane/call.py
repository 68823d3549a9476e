"""One inference request from its first byte to its outcome, whoever carries its bytes.

Find the interface by path and the model by name; authenticate; let the filters have their say; ask a server, starting
one if need be, and relay its answer; whatever happens, give back what was held, record the outcome and end the trace.
What needs not wait for anything happens in the calls of the connections. What has to wait gets a task, one at a time.
"""

from __future__ import annotations

from sidecar.control.leases import Lease
from sidecar.mechanism.calls import at_once
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.mechanism.spans import AnyStage
from sidecar.surfaces.dataplane.admission import Asked, Given
from sidecar.surfaces.dataplane.asking import Asking
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.relaying import Relaying
from sidecar.surfaces.dataplane.upload import Upload
from sidecar.surfaces.dataplane.uploading import Uploading


class Call(Asking):
    """One request. `begin` it when its body is there; the wire is answered, and the outcome recorded."""

    # --- from the client ----------------------------------------------------------------------------------------

    def begin(self, body: bytes, upload: Upload | None = None) -> None:
        """The request is complete, or its body is on its way."""
        self._bytes_in = len(body)
        try:
            admission = self.admission
            admission.identify(body, upload)
            self.response.interface = admission.found.interface
            if not admission.waits_for_nothing:
                self.spawn(self._course(body))
                return
            if self._take(at_once(admission.admit(body))) and not self._ask_at_once():
                self.spawn(self._ask())
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is nobody's refusal
            self.fail(error)

    def begin_upload(self, uploading: Uploading) -> None:
        """The request has a large body, of which so much has come that its model is known."""
        self._uploading = uploading
        self._fresh = True  # one that was used may be closed in this moment, and there is no other attempt
        self.begin(b"", uploading.upload)

    def resume(self, size: int, asked: Asked | None, lease: Lease | None) -> None:
        """Go on with what has begun. size: of the body. None: the plugins have not let it in; nothing is leased."""
        self._bytes_in = size
        self._lease = lease
        if asked is not None:
            self._take(asked)

    def answer(self, given: Given) -> None:
        """A plugin has answered."""
        self._take(given)

    def wait(self) -> None:
        """Ask as soon as there is somebody to be asked."""
        if not self._finished:
            self.spawn(self._ask())

    def relay(self, relaying: Relaying, stage: AnyStage) -> None:
        """The lease's server was asked: that is how it is told."""
        self._target = self._lease.target if self._lease is not None else None
        self._relaying = relaying
        self._stage = stage

    def more(self, data: bytes) -> None:
        """More of the body has come."""
        uploading = self._uploading
        if uploading is not None and not self._finished:
            try:
                uploading.feed(data)
            except ApiError as error:
                self.cut_off(error)

    def complete(self) -> None:
        """All of the body has come."""
        uploading = self._uploading
        if uploading is not None and not self._finished:
            try:
                uploading.finish()
            except ApiError as error:
                self.cut_off(error)

    def left(self) -> None:
        """The client has gone."""
        if self._finished:
            return
        self.response.left()
        self._stop_relaying()
        if self._task is not None:
            self._task.cancel()  # and then it is finished
        else:
            self._finish()

    def slow(self, paused: bool) -> None:
        """The client does not keep up, or has caught up."""
        if self._relaying is not None:
            self._relaying.slow(paused)

    def cut_off(self, error: ApiError) -> None:
        """End the request now, whatever it waits for."""
        if self._finished:
            return
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self.fail(error)

    # --- from the server (relaying.Owner) -----------------------------------------------------------------------

    def headed(self, status: int) -> None:
        self._keep_only_what_is_read()
        self._stop_timer()
        if self._stage is not None:
            self._stage.set("http.response.status_code", status)

    def server_slow(self, paused: bool) -> None:
        if self._uploading is not None:
            self._uploading.slow(paused)

    def answered(self) -> None:
        self._relaying = None
        self._keep_only_what_is_read()
        self._finish()
        self._wire.end()

    def broken(self, error: UpstreamError) -> None:
        relaying = self._relaying
        if relaying is None or relaying.headed:
            self.spawn(self._broke_off(error))
            return
        self._end_stage(error)
        self._stop_timer()
        self._relaying = None
        self.spawn(self._ask(error))

    def refused(self, error: Exception) -> None:
        self._relaying = None
        self.fail(error)
