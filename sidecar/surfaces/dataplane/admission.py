"""Who asks for what, and whether they may: from the bytes of a request to what is to be asked of a server."""

from __future__ import annotations

import msgspec

from plugin_sdk import ANONYMOUS, Headers, Principal, Reject, Request
from plugin_sdk import Response as Answer
from sidecar.control.generations import Generation
from sidecar.control.visible import Visible
from sidecar.core.manifest import Model
from sidecar.core.names import listed
from sidecar.mechanism.chain import Chain
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.results import is_name
from sidecar.mechanism.spans import AnyStage
from sidecar.mechanism.traces import AnyTrace
from sidecar.surfaces.dataplane import passthrough, query
from sidecar.surfaces.dataplane.body import Head
from sidecar.surfaces.dataplane.courses import Course
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.incoming import Found, Incoming
from sidecar.surfaces.dataplane.upload import Upload


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, of which model: the request as the filters left it, and what matters of its body.

    model: as a manifest declares it; None = none does, and a route plugin has to know where it is.
    through: it goes to the server whatever it is. in_query: the query names the model, and perhaps nothing else does.
    """

    name: str
    model: Model | None
    request: Request
    head: Head
    chain: Chain
    passage: Passage | None
    through: bool = False
    in_query: bool = False

    def renames_body(self, name: str) -> bool:
        """Whether the body has to be changed for a server that calls the model so."""
        return self.head.model != name and not (self.head.model is None and self.elsewhere)

    @property
    def elsewhere(self) -> bool:
        """Whether something else than the body names the model."""
        return self.through or self.in_query

    def target(self, name: str) -> str:
        """Path and query for such a server."""
        path, asked = self.request.path, self.request.query
        if self.through:
            path = passthrough.server_path(path)
        elif self.in_query:
            asked = query.with_model(asked, name)
        return f"{path}?{asked}" if asked else path


class Given(msgspec.Struct, frozen=True):
    """An answer that a filter gives in the server's place."""

    answer: Answer
    by: str


class Admission:
    """One request on its way in. First `identify`, then `admit`.

    name, chain, found: the model, its plugins and its interface, as far as they are known. principal, passage: once
    they are.
    """

    __slots__ = (
        "_candidates",
        "_error",
        "_generation",
        "_head",
        "_incoming",
        "_is_model",
        "_knows",
        "_model",
        "_named",
        "_requested",
        "_trace",
        "chain",
        "found",
        "name",
        "passage",
        "principal",
    )

    def __init__(
        self, generation: Generation, incoming: Incoming, candidates: tuple[Found, ...], trace: AnyTrace
    ) -> None:
        self.name = ""
        self.chain = generation.default_chain
        self.found = candidates[0]
        self.principal: Principal = ANONYMOUS
        self.passage: Passage | None = None
        self._generation = generation
        self._incoming = incoming
        self._candidates = candidates
        self._trace = trace
        self._head = Head()
        self._model: Model | None = None
        self._named: str | None = None  # by the query
        self._requested = ""
        self._is_model = True
        self._knows = True  # or perhaps a plugin does
        self._error: ApiError | None = None

    @property
    def known_name(self) -> str:
        """The model's name; "" for what somebody has merely called one."""
        return self.name if self._is_model else ""

    def identify(self, body: bytes, upload: Upload | None = None) -> None:
        """Find the model and its chain. What is wrong is told by `admit`, to whom the default chain has let in.

        upload: a body that is still coming, but has named the model; then `body` is empty.
        """
        try:
            self._requested = self._asked_for(body, upload) or ""
            found = self._generation.find(self._requested)
        except ApiError as error:
            self._error = error
            return
        if found is not None:
            self.name, self._model = found
            self.chain = self._generation.chain(self.name)
            self._choose(self._model.modes)
            self._trace.asks_for(self._requested, self.found.endpoint.operation)
            self.passage = self._passage()
        elif not (
            self.chain.supplies and is_name(self._requested) and self._generation.supplied.may_have(self._requested)
        ):
            self._knows = False

    def _asked_for(self, body: bytes, upload: Upload | None) -> str | None:
        """The model's name as the client has it. Raises ApiError."""
        incoming = self._incoming
        if self.found.through:
            return passthrough.model_of(incoming.path)
        self._named = query.model_in(incoming.query)
        if incoming.method == "GET" and not body:
            return self._named
        if upload is None:
            self._head = query.head_of(body, incoming.content_type, self._named)
        else:
            self._head = Head(upload.model, upload.streams)
            query.check(upload.model, self._named)
        return self._head.model or self._named

    @property
    def waits_for_nothing(self) -> bool:
        """Whether `admit` needs no task to run in."""
        if self._model is None and self._error is None and self._knows:
            return False
        return self.chain.auth_inline and (self.passage is None or self.passage.inline)

    async def admit(self, body: bytes) -> Asked | Given:
        """Ask the plugins. Raises ApiError and Reject.

        Nobody learns which models there are before the default chain has let them in.
        """
        if self._model is None and self._error is None and self._knows:
            await self._find_supplied()
        request = await self._authenticated(body)
        if self._error is not None:
            raise self._told(self._error)
        if not self._knows:
            raise self.unknown_model()
        if self._model is not None and self.found.mode not in self._model.modes:
            raise ApiError(400, "wrong_mode", self._wrong_mode(self._model.modes), param="model")
        if self.found.through:
            self._check_through(body)
        else:
            self.found.interface.validate(request)
        passage, head = self.passage, self._head
        if passage is not None:
            with self._trace.stage("filters"):
                result = passage.request_now(request) if passage.inline else await passage.request(request)
            if isinstance(result, Answer):
                return Given(result, passage.answered_by)
            if result.body is not body and not self.found.through:
                head = reread(result, self._named)
            request = result
        return Asked(
            name=self.name,
            model=self._model,
            request=request,
            head=head,
            chain=self.chain,
            passage=passage,
            through=self.found.through,
            in_query=self._named is not None,
        )

    def _check_through(self, body: bytes) -> None:
        names = {self.name, self._requested}
        if self._model is not None:
            names |= {*self._model.aliases, *(variant.model_name for variant in self._model.variants)}
        passthrough.check_names(self._incoming.query, body, self._incoming.content_type, names)

    def _passage(self) -> Passage | None:
        settings = self._generation.declaration.settings
        interface = self.found.interface
        return self.chain.passage(self.found.mode, settings.max_body, events=interface.events)

    async def _find_supplied(self) -> None:
        """A model that no manifest declares, but a plugin may know."""
        supplied = self._generation.supplied
        await supplied.first()
        listed_as = supplied.find(self._requested)
        self._is_model = listed_as is not None
        self.name, modes = (self._requested, ()) if listed_as is None else (listed_as.name, listed_as.modes)
        self._choose(modes)
        self._trace.asks_for(self._requested, self.found.endpoint.operation)
        self.passage = self._passage()
        if modes and self.found.mode not in modes:
            self._error = ApiError(400, "wrong_mode", self._wrong_mode(modes), param="model")

    def _choose(self, modes: tuple[str, ...]) -> None:
        """Of the interfaces on the path, the one that the model speaks."""
        if self.found.through and modes:
            interface = self._generation.interfaces.get(modes[0], self.found.interface)
            self.found = msgspec.structs.replace(self.found, mode=modes[0], interface=interface)
        elif self.found.mode not in modes:
            self.found = next((found for found in self._candidates if found.mode in modes), self.found)

    def resume(self, course: Course, head: Head, principal: Principal, passage: Passage | None) -> None:
        """So much is known of it already."""
        self.name, self._model, self._requested = course.name, course.model, course.requested
        self.chain, self.found = course.chain, course.found
        self._head, self.principal, self.passage = head, principal, passage

    async def _authenticated(self, body: bytes) -> Request:
        incoming = self._incoming
        request = Request(
            method=incoming.method,
            path=incoming.path,
            query=incoming.query,
            headers=Headers(incoming.headers),
            body=body,
            model=self.name,
            requested_model=self._requested,
            listed=self._is_model,
            mode=self.found.mode,
            client=incoming.client,
        )
        if not self.chain.has_auth:
            return request
        with self._trace.stage("auth") as stage:
            if self.chain.auth_inline:
                self.principal = authenticated_now(self.chain, request, stage)
            else:
                try:
                    self.principal = await self.chain.authenticate(request)
                except Reject as reject:
                    raise _denied(reject, stage) from None
        return msgspec.structs.replace(request, principal=self.principal)

    def _told(self, error: ApiError) -> ApiError:
        """The error, which is not kept: its traceback leads back here, and would have to be collected as garbage."""
        self._error = None
        return error

    def unknown_model(self) -> ApiError:
        """What to say when nobody knows the model."""
        requested = self._requested
        if not requested and not self.found.through:
            return ApiError(400, "model_missing", 'the body or the query must name a "model"', param="model")
        shown = requested[:200]
        self._trace.asks_for(shown)
        meant = Visible(self._generation, self.principal).near(requested)
        hint = f"; near it: {', '.join(meant)}" if meant else "; see /v1/models"
        return ApiError(404, "model_not_found", f'there is no model "{shown}"{hint}', param="model")

    def _wrong_mode(self, modes: tuple[str, ...]) -> str:
        interfaces = self._generation.interfaces
        paths = [interfaces[mode].endpoints[0].path for mode in modes if mode in interfaces]
        return (
            f'the model "{self.name}" is of mode {listed(modes)}, not {self.found.mode}: it answers at {listed(paths)}'
        )


def authenticated_now(chain: Chain, request: Request, stage: AnyStage) -> Principal:
    """Who is calling, where `auth_inline`. Raises ApiError."""
    try:
        return chain.authenticate_now(request)
    except Reject as reject:
        raise _denied(reject, stage) from None


def _denied(reject: Reject, stage: AnyStage) -> ApiError:
    stage.set("error.type", reject.code)
    return ApiError.rejected(reject)


def reread(request: Request, named: str | None) -> Head:
    """What matters of a request that filters have changed."""
    try:
        return query.head_of(request.body, request.headers.get("content-type"), named)
    except ApiError as error:
        raise ApiError(500, "filter_failed", f"a filter has made of the request what cannot be sent: {error}") from None
