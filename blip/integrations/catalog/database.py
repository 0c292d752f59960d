"""The catalogue's database: opened, migrated, read and written on SQLite and PostgreSQL alike."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session

from blip.errors import IntegrationError

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 60.0  # how long a writer waits for another one before it gives up
CONNECT_SECONDS = 10


def open_catalog(url: str) -> Engine:
    """Open a catalogue, made or migrated to the newest schema where needed.

    Args:
        url: `sqlite:///catalog.db` or `postgresql+psycopg://user@host/database`.

    Raises:
        IntegrationError: The URL is no catalogue's, or the database is away, locked or another
            program's.
    """
    engine = _engine(url)
    with _errors(engine.url):
        _migrate(engine)
    return engine


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Open a session to ask questions.

    Raises:
        IntegrationError: The database is away or refuses.
    """
    with _errors(engine.url), Session(engine) as session:
        yield session


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes, committed at the end; others wait their turn.

    Raises:
        IntegrationError: The database is away or refuses; nothing was written.
    """
    with _errors(engine.url), engine.execution_options(writes=True).begin() as connection:
        yield connection


def head() -> str:
    """Give the newest revision of the schema; the names of their files begin with numbers."""
    return max(file.stem for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))[:4]


def _migrate(engine: Engine) -> None:
    with engine.connect() as connection:
        if _revision(connection) == head():
            return
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('blip catalogue'))"))
        if _revision(connection) != head():
            _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))


def _upgrade(connection: Connection) -> None:
    """Run the migrations; Alembic is imported only here, since it is rarely needed."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", MIGRATIONS.as_posix().replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise IntegrationError(
            f"catalogue {_shown(connection.engine.url)}: holds revision {_revision(connection)!r}, "
            "unknown here: it belongs to another program or to a newer version of this one; "
            "name another database, or upgrade"
        ) from None


def _engine(url: str) -> Engine:
    wanted = "use sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise IntegrationError(f"catalogue {url!r}: not a database URL: {wanted}") from None
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        timeout = {} if "timeout" in parsed.query else {"timeout": BUSY_SECONDS}
        engine = create_engine(parsed, connect_args=timeout)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.drivername == "postgresql+psycopg":
        timeout = {} if "connect_timeout" in parsed.query else {"connect_timeout": CONNECT_SECONDS}
        return create_engine(parsed, connect_args=timeout, pool_pre_ping=True)
    raise IntegrationError(f"catalogue {_shown(parsed)}: {wanted}")


def _configure_sqlite(connection: object, record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # transactions begin where we say
    connection.execute("PRAGMA journal_mode = WAL")  # type: ignore[attr-defined]  # readers never wait
    connection.execute("PRAGMA foreign_keys = ON")  # type: ignore[attr-defined]
    connection.execute("PRAGMA synchronous = NORMAL")  # type: ignore[attr-defined]


def _begin_sqlite(connection: Connection) -> None:
    """Take the write lock at once: a reader that turns writer would fail instead of waiting."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def _errors(url: URL) -> Iterator[None]:
    """Turn what a database driver raises into one line that names the catalogue."""
    try:
        yield
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        raise IntegrationError(f"catalogue {_shown(url)}: {reason}{_remedy(url, reason)}") from None


def _remedy(url: URL, reason: str) -> str:
    if "unable to open" in reason:
        return f": is {Path(url.database or '').resolve().parent} there, and may it be written?"
    if "locked" in reason:
        return ": another process holds it: wait for it, or stop it first"
    if "not a database" in reason or "malformed" in reason:
        return ": remove the file and run `blip catalog rebuild`; nothing is lost"
    if url.get_backend_name() == "postgresql" and "connect" in reason:
        return ": is the server running, and the URL right?"
    return ""


def _shown(url: URL) -> str:
    return url.render_as_string(hide_password=True)
