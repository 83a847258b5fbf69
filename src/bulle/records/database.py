"""The database of one ``BULLE_HOME``: SQLite in WAL mode, one connection per process and thread, never carried across a fork.

Names, tags, layers and id ranges are allocated here in transactions, so that two commands at once cannot get the same. Nothing that the kernel knows
(is it alive, what is mounted) is stored. Siblings of this file hold the typed rows of one table each.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bulle.errors import BulleError, StorageFull, Unavailable
from bulle.records import reserve

BUSY_TIMEOUT_S = 30.0

SCHEMA = """
CREATE TABLE image (
    id TEXT PRIMARY KEY,                -- digest of the config: Docker's image id
    manifest_digest TEXT NOT NULL,
    manifest_media_type TEXT NOT NULL,
    config BLOB NOT NULL,               -- raw bytes, so that the digest holds
    manifest BLOB NOT NULL,             -- raw bytes
    created_at_ns INTEGER NOT NULL,     -- when it came into this store
    size_bytes INTEGER NOT NULL,        -- sum of its layers' uncompressed tars
    host_binds TEXT NOT NULL DEFAULT '' -- colon-separated host directories (the built-in host image)
) STRICT;
CREATE TABLE tag (
    reference TEXT PRIMARY KEY,         -- canonical: domain/path:tag or domain/path@digest
    image_id TEXT NOT NULL REFERENCES image(id)
) STRICT;
CREATE INDEX tag_image ON tag(image_id);
CREATE TABLE layer (
    diff_id TEXT PRIMARY KEY,           -- digest of the uncompressed tar
    size_bytes INTEGER NOT NULL,
    kind TEXT NOT NULL,                 -- tar | directory
    implicit_parents INTEGER NOT NULL DEFAULT 0  -- 1: directories that only lower layers describe; 2: so is its root
) STRICT;
CREATE TABLE layer_blob (               -- the layer as registries hold it, kept in blobs/
    blob_digest TEXT PRIMARY KEY,
    diff_id TEXT NOT NULL,
    size_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE layer_chain (              -- what a layer is on top of given others
    chain_id TEXT PRIMARY KEY,
    diff_id TEXT NOT NULL REFERENCES layer(diff_id) ON DELETE CASCADE,
    variant TEXT NOT NULL               -- directory of its index: plain, or the chain's own where attributes come from below
) STRICT;
CREATE INDEX layer_chain_diff ON layer_chain(diff_id);
CREATE TABLE layer_lease (              -- keeps a new layer until its image is there
    diff_id TEXT NOT NULL,
    workspace TEXT NOT NULL,            -- directory in tmp/ that its owner holds locked while it lives
    PRIMARY KEY (diff_id, workspace)
) STRICT, WITHOUT ROWID;
CREATE TABLE image_layer (
    image_id TEXT NOT NULL REFERENCES image(id) ON DELETE CASCADE,
    position INTEGER NOT NULL,          -- 0 is the lowest
    diff_id TEXT NOT NULL REFERENCES layer(diff_id),
    blob_digest TEXT NOT NULL,          -- the layer as it stands in the manifest
    PRIMARY KEY (image_id, position)
) STRICT;
CREATE INDEX image_layer_diff ON image_layer(diff_id);
CREATE TABLE container (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    image_id TEXT NOT NULL,
    created_at_ns INTEGER NOT NULL,
    id_range INTEGER UNIQUE,            -- first host id of its 65536, NULL without an own user namespace
    options BLOB NOT NULL,              -- ContainerOptions as JSON
    plan BLOB NOT NULL                  -- RunPlan as JSON
) STRICT;
CREATE TABLE container_layer (          -- the lease that keeps a layer while a container stands on it, whatever became of the image
    container_id TEXT NOT NULL REFERENCES container(id) ON DELETE CASCADE,
    diff_id TEXT NOT NULL,
    PRIMARY KEY (container_id, diff_id)
) STRICT, WITHOUT ROWID;
"""

BUILDS_AND_REGISTRIES = """
CREATE TABLE build_step (               -- what a step of a build came to: the build cache
    key TEXT PRIMARY KEY,               -- digest of everything that the step depends on
    parent TEXT NOT NULL,               -- chain id of the layers that it stands on, '' for none
    instruction TEXT NOT NULL,          -- as it stands in the Containerfile
    diff_id TEXT REFERENCES layer(diff_id), -- the layer that it made, NULL for none; kept as long as this row is
    inputs BLOB NOT NULL,               -- JSON: every input by name with its digest, to say why a step is not cached
    created_at_ns INTEGER NOT NULL,
    used_at_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX build_step_instruction ON build_step(instruction);
CREATE INDEX build_step_diff ON build_step(diff_id);
CREATE TABLE artifact (                 -- what refers to an image: signatures, lists of packages (distribution specification, referrers)
    digest TEXT PRIMARY KEY,            -- of its manifest
    subject TEXT NOT NULL,              -- digest of the manifest that it speaks of
    manifest BLOB NOT NULL              -- raw bytes
) STRICT;
CREATE INDEX artifact_subject ON artifact(subject);
CREATE TABLE artifact_blob (
    artifact TEXT NOT NULL REFERENCES artifact(digest) ON DELETE CASCADE,
    blob_digest TEXT NOT NULL,
    PRIMARY KEY (artifact, blob_digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifact_blob_digest ON artifact_blob(blob_digest);
CREATE TABLE image_index (              -- several images under one name, one for each platform
    reference TEXT PRIMARY KEY,         -- canonical, with a tag
    media_type TEXT NOT NULL,
    document BLOB NOT NULL              -- raw bytes
) STRICT;
CREATE TABLE image_index_image (
    reference TEXT NOT NULL REFERENCES image_index(reference) ON DELETE CASCADE,
    image_id TEXT NOT NULL REFERENCES image(id),
    PRIMARY KEY (reference, image_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_index_image_id ON image_index_image(image_id);
CREATE TABLE blob_source (              -- which repositories are known to hold a blob, so that a registry can mount it into another
    blob_digest TEXT NOT NULL,
    repository TEXT NOT NULL,           -- domain/path
    PRIMARY KEY (blob_digest, repository)
) STRICT, WITHOUT ROWID;
"""

NETWORKS = """
CREATE TABLE network (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at_ns INTEGER NOT NULL,
    device TEXT NOT NULL,               -- its bridge, or the parent of its macvlans
    config BLOB NOT NULL,               -- NetworkConfig as JSON
    last_ipv4 INTEGER NOT NULL DEFAULT 0, -- which address of the range was given last
    last_ipv6 INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE endpoint (                 -- a container's place on a network, for its whole life
    network_id TEXT NOT NULL REFERENCES network(id),
    container_id TEXT NOT NULL REFERENCES container(id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    ipv4 TEXT,
    ipv6 TEXT,
    PRIMARY KEY (network_id, container_id),
    UNIQUE (network_id, ipv4),
    UNIQUE (network_id, ipv6)
) STRICT, WITHOUT ROWID;
CREATE INDEX endpoint_container ON endpoint(container_id);
"""

VOLUMES = """
CREATE TABLE volume (
    name TEXT PRIMARY KEY,
    created_at_ns INTEGER NOT NULL,
    anonymous INTEGER NOT NULL,         -- 1: nobody gave it its name; it goes with its container where that is asked for
    labels BLOB NOT NULL,               -- JSON
    options BLOB NOT NULL               -- JSON: the local driver's
) STRICT;
CREATE TABLE container_volume (         -- keeps a volume while a container has it
    container_id TEXT NOT NULL REFERENCES container(id) ON DELETE CASCADE,
    volume TEXT NOT NULL REFERENCES volume(name),
    PRIMARY KEY (container_id, volume)
) STRICT, WITHOUT ROWID;
CREATE INDEX container_volume_volume ON container_volume(volume);
"""

PLATFORMS = """
CREATE TABLE platform_tag (             -- images that have a name too, for other platforms than the image that tag gives it to
    reference TEXT NOT NULL REFERENCES tag(reference) ON DELETE CASCADE,
    image_id TEXT NOT NULL REFERENCES image(id) ON DELETE CASCADE,
    PRIMARY KEY (reference, image_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX platform_tag_image ON platform_tag(image_id);
"""

APPS = """
CREATE TABLE app (                      -- what is wanted of an app, for whoever keeps it so
    name TEXT PRIMARY KEY,
    changed_at_ns INTEGER NOT NULL,
    project BLOB NOT NULL,              -- JSON: the project as it was made last
    previous BLOB NOT NULL,             -- JSON: services by name as they were before their last change, for a rollback
    choices BLOB NOT NULL               -- JSON: what was chosen beside the file, and which services are to run
) STRICT;
"""

SNAPSHOTS = """
CREATE TABLE snapshot (                 -- a container's files and options as they were
    container_id TEXT NOT NULL REFERENCES container(id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    created_at_ns INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,        -- what it holds beside the layers that the container stood on
    layers BLOB NOT NULL,               -- JSON: diff ids, lowest first
    options BLOB NOT NULL,              -- ContainerOptions as JSON
    PRIMARY KEY (container_id, tag)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshot_layer (           -- the lease that keeps a layer while a snapshot has it
    container_id TEXT NOT NULL,
    tag TEXT NOT NULL,
    diff_id TEXT NOT NULL,
    PRIMARY KEY (container_id, tag, diff_id),
    FOREIGN KEY (container_id, tag) REFERENCES snapshot(container_id, tag) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_layer_diff ON snapshot_layer(diff_id);
"""

MACHINES_IN_SNAPSHOTS = """
ALTER TABLE snapshot ADD COLUMN machine BLOB
"""
"""JSON: what is kept of a machine that ran, KeptMachine; null where the layers are all."""

SCHEMAS = (SCHEMA, BUILDS_AND_REGISTRIES, NETWORKS, VOLUMES, PLATFORMS, APPS, SNAPSHOTS, MACHINES_IN_SNAPSHOTS)
"""What each version of the schema added to the one before; a database of an older version is given what it lacks when it is opened."""


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """Connections to ``home/bulle.db``; safe to share between threads and to inherit by fork (each process and thread opens its own)."""

    def __init__(self, home: Path) -> None:
        self.path = home / "bulle.db"
        self._local = threading.local()
        _databases.add(self)

    def connection(self) -> sqlite3.Connection:
        """The connection of this thread in this process, opened and given its schema at first use."""
        if getattr(self._local, "pid", 0) != os.getpid():
            # A connection inherited from the parent is never touched, not even closed: closing would drop the parent's POSIX locks.
            self._local.inherited = getattr(self._local, "connection", None)
            self._local.connection = self._open()
            self._local.pid = os.getpid()
        connection: sqlite3.Connection = self._local.connection
        return connection

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self._open_once()
        except BulleError as error:
            if not _is_for_want_of_space(error.__cause__) or not reserve.give_way(self.path.parent):
                raise
            return self._open_once()
        reserve.hold_back(self.path.parent)
        return connection

    def _open_once(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            connection.execute("PRAGMA foreign_keys = ON")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < len(SCHEMAS):
                _use_write_ahead_log(connection)
                connection.execute("BEGIN IMMEDIATE")
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                for schema in SCHEMAS[version:]:
                    for statement in schema.split(";\n"):
                        connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {max(version, len(SCHEMAS))}")
                connection.execute("COMMIT")
            # WAL with NORMAL loses at most the last transactions of a power cut and never corrupts.
            connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error
        if version > len(SCHEMAS):
            raise Unavailable(
                f"the database {self.path} was written by a newer Bulle", f"schema {version}, this one knows {len(SCHEMAS)}", "upgrade Bulle"
            )
        return connection

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
        """All rows of a query."""
        try:
            return self.connection().execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _explained(error, self.path) from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One writing transaction.

        Committed at the end, rolled back on any exception. sqlite3.IntegrityError passes through for callers that allocate.
        """
        connection = self.connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if _is_for_want_of_space(error):
                reserve.give_way(self.path.parent)  # for the next: a full disk is emptied by commands that write here
            raise _explained(error, self.path) from error

    def close_unless_in_transaction(self) -> None:
        """:meth:`close`, but not in the middle of a change."""
        if getattr(self._local, "pid", 0) == os.getpid() and not self._local.connection.in_transaction:
            self.close()

    def close(self) -> None:
        """Close this thread's connection, if this process opened it."""
        if getattr(self._local, "pid", 0) == os.getpid():
            self._local.connection.close()
            self._local.pid = 0


def _close_before_fork() -> None:
    """SQLite keeps what it knows of an open file for the whole process: a child that has closed the descriptors would ask the wrong ones for locks.

    So nothing of this thread's is open at a fork(2); the next use opens it again, here and there.
    """
    for database in list(_databases):
        database.close_unless_in_transaction()


os.register_at_fork(before=_close_before_fork)


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Change the journal's mode, for which SQLite does not wait by itself when two open a new database at the same moment."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
        time.sleep(0.002)


def _is_full(directory: Path) -> bool:
    with suppress(OSError):
        return os.statvfs(directory).f_bavail == 0
    return False


def _is_for_want_of_space(error: BaseException | None) -> bool:
    """Also failures of input and output: that is how SQLite says it of its shared memory."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_IOERR"))


def _explained(error: sqlite3.Error, path: Path) -> BulleError:
    name = getattr(error, "sqlite_errorname", "")
    if name == "SQLITE_FULL" or ("disk" in str(error) and "full" in str(error)) or (name.startswith("SQLITE_IOERR") and _is_full(path.parent)):
        return StorageFull(
            f"the database {path} could not be written", "no space left on the device", "free some space, for example with `bulle rmi`"
        )
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
        return Unavailable(f"the database {path} could not be opened", str(error), "check BULLE_HOME and its owner")
    return BulleError(f"the database {path} failed", str(error), "if it stays so, move it aside: images can be pulled again")
