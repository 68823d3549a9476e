"""A PostgreSQL database, by psycopg 3: `pip install "llm-sidecar[postgres]"`. Several sidecars may write to one.

To be used by one thread, which alone waits when the server does. A connection that breaks while a transaction commits
leaves open what became of it, so its number is kept, and the server is asked before anything is written again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from plugin_sdk import PluginError, Secret
from sidecar.builtin.usage import tables
from sidecar.builtin.usage.rows import COLUMNS, Row

if TYPE_CHECKING:
    import psycopg

LATE_MS = 30_000  # for a question
_PATIENT = {  # what the dsn may say otherwise
    "connect_timeout": "5",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
# A server that answers so is there, and will not think better of it by itself.
_FINAL = ("authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied", "not permitted")

HOUR = "CAST(FLOOR(started_s / 3600) AS BIGINT) * 3600"
_LOCK = 5_108_773_951_338_461_284  # of ours, for what only one may do at a time; any other number would do
_KINDS = {"REAL": "DOUBLE PRECISION", "INTEGER": "BIGINT"}


def _kind(kind: str) -> str:
    first, _, rest = kind.partition(" ")
    return f"{_KINDS.get(first, first)} {rest}".strip()


_TYPED = ", ".join(f'"{name}" {_kind(kind)}' for name, kind in COLUMNS.items())
_BARE = ", ".join(f'"{name}" {_kind(kind.partition(" ")[0])}' for name, kind in COLUMNS.items())
_CREATE = (
    f"CREATE TABLE usage_requests (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, {_TYPED})",
    "CREATE INDEX usage_requests_by_time ON usage_requests (started_s)",
    tables.TOTALS,
    tables.SERVERS,
    tables.PRICES.format(real="DOUBLE PRECISION"),
    "CREATE TABLE usage_schema (version BIGINT NOT NULL)",
    f"INSERT INTO usage_schema VALUES ({tables.VERSION})",  # noqa: S608 - constants alone, as below
)
# Read from the table, since to_regclass() may remember from before somebody else has made them that they are not there.
_KNOWN = "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'usage_schema' AND pg_table_is_visible(oid))"
_STORE = (
    f"WITH new AS (INSERT INTO usage_requests ({tables.NAMES}) SELECT {tables.NAMES} "  # noqa: S608
    f"FROM json_to_recordset(?) AS told ({_BARE}) RETURNING *) " + tables.sum_up("new", HOUR)
)


class Postgres:
    """A database on a server."""

    requests = "usage_requests"
    hour = HOUR

    def __init__(self, dsn: Secret, node: str) -> None:
        """Raises PluginError if the dsn makes no sense, or psycopg is not installed."""
        self._driver = _driver()
        told = _read(self._driver, dsn)
        name = {"application_name": f"sidecar usage {node}"[:63]}
        self._dsn = _PATIENT | name | told
        self.place = f"{told.get('host') or 'the local PostgreSQL server'}, {told.get('dbname') or 'default database'}"
        self._database: psycopg.Connection[Row] | None = None
        self._doubtful: int | None = None

    def check(self) -> None:
        """Whether there can be a database. Raises what makes it impossible, not what may pass by itself."""
        try:
            self.connect()
        except self._driver.Error as error:
            if not isinstance(error, self._driver.OperationalError) or any(text in str(error) for text in _FINAL):
                raise PluginError(f"{self.place}: {_line(error)}") from error
        finally:
            self.disconnect()

    def connect(self) -> bool:
        """Be connected, with all tables up to date. Whether that is new. Raises psycopg.Error."""
        if self._database is not None:
            return False
        # No prepared statements: a pooler between us and the server may hand each transaction to another session.
        database = self._driver.connect(**self._dsn, autocommit=True, prepare_threshold=None)
        self._database = database
        try:
            self._update()
        except BaseException:
            self.disconnect()
            raise
        return True

    def disconnect(self) -> None:
        """Let go of it."""
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; nobody else does such a thing meanwhile."""
        with self._connected().transaction():
            self.run(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """What a statement gives."""
        cursor = self._connected().execute(_marked(sql), values)
        return cursor.fetchall() if cursor.description else []

    def changed(self, sql: str, values: Sequence[Any] = ()) -> int:
        """How many rows a statement changes."""
        return self._connected().execute(_marked(sql), values).rowcount

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """A statement for each."""
        with self._connected().cursor() as cursor:
            cursor.executemany(_marked(sql), list(rows))

    def store(self, rows: Sequence[Row]) -> None:
        """Add requests, and what they add up to. After a failure it has to be called with the same ones again."""
        if self._stored_before():
            return
        with self._decisive():
            self._store(rows)

    def store_apart(self, rows: Sequence[Row]) -> list[Exception]:
        """Add those that can be stored; what is wrong with the others."""
        unfit: list[Exception] = []
        with self._decisive():
            for values in rows:
                try:
                    with self._connected().transaction():  # a savepoint
                        self._store((values,))
                except Exception as error:
                    if self.is_ours(error):
                        raise
                    unfit.append(error)
        return unfit

    def is_ours(self, error: Exception) -> bool:
        """Whether the database is in trouble, not what was to be stored in it."""
        driver = self._driver
        if isinstance(error, driver.DataError | driver.IntegrityError):
            return False
        return isinstance(error, driver.Error | OSError | PluginError)

    def passes(self, error: Exception) -> bool:
        """Whether waiting may help."""
        return isinstance(error, self._driver.OperationalError)

    def recover(self, error: Exception) -> None:
        """Go on after a failure."""
        del error
        self.disconnect()

    def _store(self, rows: Sequence[Row]) -> None:
        told = msgspec.json.encode([dict(zip(COLUMNS, values, strict=True)) for values in rows])
        self.run(_STORE, (told.decode(),))

    @contextmanager
    def _decisive(self) -> Iterator[None]:
        """A transaction of which it is found out later whether it was committed, if the connection breaks just then."""
        with self._connected().transaction():
            [[number]] = self.run("SELECT txid_current()")
            yield
            self._doubtful = number
        self._doubtful = None

    def _stored_before(self) -> bool:
        """Whether what seemed to fail the last time was committed. Raises OperationalError if it still may be."""
        if self._doubtful is None:
            return False
        [[fate]] = self.run("SELECT txid_status(?)", (self._doubtful,))
        if fate == "in progress":
            raise self._driver.OperationalError("it is not known yet what became of the last transaction")
        self._doubtful = None
        return bool(fate == "committed")

    def _update(self) -> None:
        [[known]] = self.run(_KNOWN)
        if not known:
            with self.transaction():
                [[known]] = self.run(_KNOWN)
                for statement in () if known else _CREATE:
                    self.run(statement)
        _check_version(self.place, self.run("SELECT version FROM usage_schema"))

    def _connected(self) -> psycopg.Connection[Row]:
        if self._database is None:
            raise self._driver.OperationalError("not connected")
        return self._database


class Reader:
    """Reads from such a database."""

    def __init__(self, dsn: Secret) -> None:
        """Raises PluginError if there is nothing to read."""
        driver = _driver()
        told = _PATIENT | _read(driver, dsn)
        try:
            self._database = driver.connect(**told, autocommit=True, prepare_threshold=None)
        except driver.Error as error:
            raise PluginError(f"the usage cannot be read: {_line(error)}") from error
        try:
            list(self.run(f"SELECT set_config('statement_timeout', '{LATE_MS}', false)"))
            list(self.run("SELECT set_config('default_transaction_read_only', 'on', false)"))
            _check_version("the database", list(self.run("SELECT version FROM usage_schema")))
        except BaseException:
            self.close()
            raise

    def run(self, sql: str, values: Sequence[Any] = ()) -> Generator[Row, None, None]:
        """What a statement gives, a row at a time: there may be millions. Raises PluginError."""
        try:
            with self._database.cursor() as cursor:
                yield from cursor.stream(_marked(sql), values)
        except _driver().Error as error:
            raise PluginError(f"the usage cannot be read: {_line(error)}") from error

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(_driver().Error):  # it is gone, which is what was wanted
            self._database.close()


def _driver() -> Any:
    """Imported when it is needed: most sidecars write to a file."""
    try:
        import psycopg
    except ImportError as error:
        raise PluginError(
            f'{error}: PostgreSQL needs the extra "postgres", pip install "llm-sidecar[postgres]"'
        ) from error
    return psycopg


def _read(driver: Any, dsn: Secret) -> dict[str, Any]:
    """What a dsn says. Raises PluginError, whose text has nothing of it: there may be a password anywhere in it."""
    try:
        told: dict[str, Any] = driver.conninfo.conninfo_to_dict(dsn.reveal())
    except driver.ProgrammingError:
        raise PluginError('dsn makes no sense: expected "postgresql://USER:PASSWORD@HOST/DATABASE"') from None
    return told


def _check_version(place: str, found: Sequence[Row]) -> None:
    version = found[0][0] if found else 0
    if version != tables.VERSION:
        raise PluginError(f"{place} has tables of version {version}, and this program knows {tables.VERSION}")


@functools.lru_cache(256)  # all statements are constants, but for how many ids they name
def _marked(sql: str) -> str:
    """With the marks for values that psycopg wants."""
    return sql.replace("?", "%s")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
