"""Reaches a running sidecar's control API from the command line."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx

from sidecar.mechanism import source
from sidecar.mechanism.rules import listen_address
from sidecar.surfaces.cli.output import UNREACHABLE, fail

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL = "http://127.0.0.1:8080"


class UnreachableError(Exception):
    """No sidecar answers at the address."""


class AnswerError(Exception):
    """The sidecar says no; the text says why."""


class Remote:
    """A running sidecar. headers: what each request to it has."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    def get(self, path: str, params: dict[str, str] | None = None) -> Any:
        """The JSON answer; exits with the reason if there is none."""
        try:
            return self.ask("GET", path, params or {}, timeout_s=30.0)
        except UnreachableError as error:
            fail(str(error), UNREACHABLE)

    def post(self, path: str, params: dict[str, str] | None = None) -> Any:
        """Like `get`; waits for as long as it takes, since starts may."""
        try:
            return self.ask("POST", path, params or {}, timeout_s=None)
        except UnreachableError as error:
            fail(str(error), UNREACHABLE)

    def ask(self, method: str, path: str, params: dict[str, str], timeout_s: float | None) -> Any:
        """The JSON answer. Raises UnreachableError; exits when the sidecar says no."""
        try:
            return self.request(method, path, params, timeout_s)
        except AnswerError as error:
            fail(str(error))

    def request(self, method: str, path: str, params: dict[str, str], timeout_s: float | None) -> Any:
        """The JSON answer. Raises UnreachableError, and AnswerError when the sidecar says no."""
        try:
            with httpx.Client(trust_env=False, timeout=httpx.Timeout(timeout_s, connect=5.0)) as http:
                response = http.request(method, self.url + path, params=params, headers=self.headers)
        except httpx.HTTPError as error:
            raise UnreachableError(f"no sidecar answers at {self.url}: {error}") from error
        if not response.is_success:
            raise AnswerError(reason(response))
        try:
            return response.json()
        except ValueError:
            raise AnswerError(f"what answers at {self.url} is no sidecar: {path} is not JSON there") from None

    def lines(self, path: str, params: dict[str, str], silence_s: float) -> Iterator[str]:
        """The lines of an answer, as they come, until it ends.

        Raises UnreachableError, also if nothing comes for `silence_s`; exits when the sidecar says no. Lines end with a
        line feed alone: what Python takes for line ends besides may stand in JSON.
        """
        timeout = httpx.Timeout(silence_s, connect=5.0)
        try:
            with (
                httpx.Client(trust_env=False, timeout=timeout) as http,
                http.stream("GET", self.url + path, params=params, headers=self.headers) as response,
            ):
                if not response.is_success:
                    response.read()
                    if response.is_server_error:  # of somebody between, as long as the sidecar is away
                        raise UnreachableError(reason(response))
                    fail(reason(response))
                rest = b""
                for chunk in response.iter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from (line.removesuffix(b"\r").decode() for line in lines)
        except httpx.HTTPError as error:
            raise UnreachableError(f"no sidecar answers at {self.url}: {error}") from error


def remote_options(command: F) -> F:
    """Adds --url, and hands the command a `remote`."""

    @click.option("--url", envvar="SIDECAR_URL", help="The sidecar's address. [default: from the manifests, or :8080]")
    @click.option("--token", envvar="SIDECAR_ADMIN_TOKEN", default="", help="The admin token, from another machine.")
    @functools.wraps(command)
    def with_remote(*args: Any, url: str | None, token: str, **kwargs: Any) -> Any:
        root = kwargs.get("directory") or Path("manifests")
        return command(*args, remote=Remote(url or declared_url(root) or DEFAULT_URL, token), **kwargs)

    return with_remote  # type: ignore[return-value] # click's options are attributes of the function, its type is the same


def declared_url(root: Path) -> str | None:
    """`listen` of the manifests in `root`, if there are any; nothing is checked, this only finds the way."""
    try:
        files = source.read(root.expanduser().absolute()).files
    except source.SourceError:
        return None
    for _, content in files:
        try:
            listen = tomllib.loads(content.decode()).get("sidecar", {}).get("listen")
            if isinstance(listen, str):
                host, port = listen_address(listen)
                host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - the way to a listener on all
                return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError, ValueError):
            continue  # a faulty file is what `sidecar validate` is for
    return None


def reason(response: httpx.Response) -> str:
    """Why an answer is an error."""
    try:
        error = response.json()["error"]
        return f"{error['message']} ({error['code']})"
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} from {response.url}: {response.text[:200]}; is this a sidecar?"
