"""The manifest's types: what operators declare. One struct per TOML table, checked by `sidecar.mechanism.loader`."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec

from plugin_sdk import ByteSize, Duration, Secret
from sidecar.core.nodes import Elsewhere, Node, Patterns


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TOML table: unknown keys are errors."""


class PortRange(msgspec.Struct, frozen=True):
    """Ports given to started servers, both ends included; written `"41000-41999"`."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """Read a range. Raises ValueError if it is not one, or is outside 1 to 65535."""
        first, dash, last = text.partition("-")
        if not (dash and first.strip().isdecimal() and last.strip().isdecimal()):
            raise ValueError(f'expected a port range such as "41000-41999", got {text!r}')
        ports = cls(int(first), int(last))
        if not 1 <= ports.first <= ports.last <= 65535:
            raise ValueError(f"expected ports from 1 to 65535 in rising order, got {text!r}")
        return ports


class Settings(Table, frozen=True):
    """`[sidecar]`: the program itself."""

    listen: str = "127.0.0.1:8080"
    ports: str = "41000-41999"
    state_dir: str = "~/.local/state/sidecar"
    headroom_mb: int = 256
    on_exit: Literal["stop", "keep"] = "stop"
    chain: tuple[str, ...] = ()
    insecure: bool = False
    admin_token: Secret | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_body: ByteSize = ByteSize(64 * 2**20)
    server_log_limit: ByteSize = ByteSize(16 * 2**20)
    drain_timeout: Duration = Duration(30)
    max_connections: int = 10_000
    header_timeout: Duration = Duration(20)
    body_timeout: Duration = Duration(60)
    send_timeout: Duration = Duration(600)
    request_timeout: Duration = Duration(0)
    cors_origins: tuple[str, ...] = ()
    allow_empty: bool = False
    metrics: Literal["operators", "open", "off"] = "operators"
    metrics_principals: bool = False


class PluginDeclaration(Table, frozen=True, rename={"import_path": "import"}):
    """`[plugins.NAME]`: a plugin that chains can name, or a device class or interface mode that models can use.

    on_error: what a failure means for the request; None = by kind. disable_after: with "disable", the failures in a row
    after which the plugin is left out until it is made anew.
    """

    import_path: str
    config: dict[str, Any] = {}
    deadline: Duration = Duration(5)
    on_error: Literal["deny", "skip", "disable"] | None = None
    disable_after: int = 5


class DeviceMatch(Table, frozen=True, rename={"device_class": "class"}):
    """Which device a name stands for; all that is given must hold. `name` is a shell-style pattern."""

    device_class: str | None = None
    uuid: str | None = None
    name: str | None = None
    index: int | None = None


class DeviceDeclaration(Table, frozen=True):
    """`[devices.NAME]`: a stable name for one device, and a cap on what may be placed on it."""

    match: DeviceMatch = DeviceMatch()
    memory_mb: int | None = None


class Variant(Table, frozen=True):
    """One way to run a model: a `command` to start, or the `url` of a server that runs already.

    foreign_listener: the port may be served by a process that the command did not fork (a container engine's proxy).
    exclusive_start: the engine sizes itself by the memory that is free (vLLM, SGLang), so nothing else may come or go
    on its devices while it loads. nodes: see `Model`.
    """

    name: str = ""
    nodes: dict[str, str | tuple[str, ...]] = {}
    required_devices: tuple[str, ...] = ()
    memory_mb: int | dict[str, int] = 0
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    cwd: str = ""
    load_timeout: Duration | None = None
    stop_timeout: Duration = Duration(10)
    foreign_listener: bool = False
    exclusive_start: bool = False
    url: str = ""
    model_name: str = ""
    weight: int = 1
    api_key: Secret | None = None

    @property
    def external(self) -> bool:
        """Whether somebody else runs the server."""
        return bool(self.url)

    def needs(self) -> tuple[tuple[str, int], ...]:
        """(device requirement, MB) for each required device, in the manifest's order."""
        memory = self.memory_mb
        return tuple((name, memory if isinstance(memory, int) else memory[name]) for name in self.required_devices)

    @property
    def load_deadline_s(self) -> float:
        """What `load_timeout` says, or else time by memory: two minutes, and a second for every 64 MB (a slow disk)."""
        if self.load_timeout is not None:
            return self.load_timeout
        return 120.0 + sum(amount for _, amount in self.needs()) / 64

    def fingerprint(self) -> str:
        """Changes when, and only when, a running server of this variant would have to restart to match it."""
        needs = [self.needs(), self.command, sorted(self.env.items()), self.cwd]
        return hashlib.sha256(msgspec.json.encode(needs)).hexdigest()[:16]


class Model(Table, frozen=True):
    """`[models.NAME]`: what clients ask for. balance: how its url variants share the load, "" = in order.

    nodes: the machines that it is for, by their labels; all must match. Empty = all machines.
    """

    variants: tuple[Variant, ...]
    mode: str | tuple[str, ...]
    nodes: dict[str, str | tuple[str, ...]] = {}
    aliases: tuple[str, ...] = ()
    chain: tuple[str, ...] | None = None
    balance: str = ""
    auto_start: bool = False
    idle_timeout: Duration = Duration(600)
    queue_timeout: Duration = Duration(300)
    max_queue: int = 256
    max_wait: Duration = Duration(30)
    min_residency: Duration = Duration(10)
    loading_events: bool = False
    count_streams: bool = False
    priority: int = 0
    pinned: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        """The interface modes that the model's servers speak."""
        return (self.mode,) if isinstance(self.mode, str) else self.mode

    def selectors(self) -> tuple[tuple[Patterns, ...], ...]:
        """The nodes that each way to run it is for: all parts of one of these must fit."""
        return tuple((self.nodes, variant.nodes) for variant in self.variants)

    def on(self, node: Node) -> Model | None:
        """The model with the variants that are for the node; None if the node is not for it at all."""
        variants = tuple(one for one in self.variants if node.fits(self.nodes, one.nodes))
        if len(variants) == len(self.variants) and node.fits(self.nodes):
            return self
        return msgspec.structs.replace(self, variants=variants) if variants else None


def balancing(strategy: str) -> str:
    """The name of the route plugin that stands for `balance = "..."`."""
    return f"balance:{strategy}"


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one revision of the manifests declares.

    revision: a hash of the content. files: `section.name` to the file that it stands in, relative to the root.
    elsewhere: models that are for other nodes. variants_elsewhere: by model, variants that are, and for which ones.
    """

    revision: str = ""
    settings: Settings = Settings()
    plugins: dict[str, PluginDeclaration] = {}
    devices: dict[str, DeviceDeclaration] = {}
    models: dict[str, Model] = {}
    files: dict[str, str] = {}
    elsewhere: dict[str, Elsewhere] = {}
    variants_elsewhere: dict[str, dict[str, str]] = {}

    def chain_of(self, model: Model) -> tuple[str, ...]:
        """The names of the model's plugin chain, in order; what balances its servers has the last word on routes."""
        chain = self.settings.chain if model.chain is None else model.chain
        return (*chain, balancing(model.balance)) if model.balance else chain

    def find(self, requested: str) -> tuple[str, Model] | None:
        """The model called `requested`, by name or alias."""
        if requested in self.models:
            return requested, self.models[requested]
        return next(((name, model) for name, model in self.models.items() if requested in model.aliases), None)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a manifest, where, and what to do.

    subject: ("models", NAME) or the like, so that only that part is held back; () = a whole file or the source.
    """

    file: str
    line: int = 0
    path: str = ""
    message: str
    subject: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"
