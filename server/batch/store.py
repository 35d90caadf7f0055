"""Files and batches on disk: contents in a folder, everything else in SQLite beside it.

Objects have OpenAI's members. Each belongs to an owner, and no method finds an object of another owner. Methods block
and may be called from any thread; several processes may use one folder.
"""

import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

Object = dict[str, Any]  # a file or a batch, as the API shows it

OPEN = ("validating", "in_progress", "finalizing", "cancelling")  # status of batches that have not ended
IS_OPEN = f"status IN ({', '.join('?' * len(OPEN))})"  # whose values are those of OPEN
DATABASE_NAME = "state.sqlite"
PART = ".part"  # suffix of contents that are being written
BUSY_S = 30.0  # longest wait for another process that writes
SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, num_bytes INTEGER NOT NULL,
    object TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, owner TEXT NOT NULL, status TEXT NOT NULL,
    object TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner);
CREATE INDEX IF NOT EXISTS batches_of_owner ON batches (owner);
"""
Table = Literal["files", "batches"]


def create_part(path: Path) -> BinaryIO:
    """Create a file with the suffix PART, locked until it is closed, and to be renamed before. Raises OSError.

    Store.delete_parts() deletes those that are not locked, as a killed server leaves them.
    """
    while True:
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it was deleted before it was locked


class Upload:
    """A file while it arrives, in pieces, under another name. Methods block."""

    def __init__(self, path: Path) -> None:
        """`path`: where the content will lie. Raises OSError."""
        self.path = path
        self.num_bytes = 0
        self._part = path.with_suffix(PART)
        self._file = create_part(self._part)

    def write(self, piece: bytes) -> None:
        """Append a piece. Raises OSError."""
        self._file.write(piece)
        self.num_bytes += len(piece)

    def finish(self) -> None:
        """Give the file its name. Raises OSError."""
        self._file.flush()
        os.replace(self._part, self.path)
        self._file.close()

    def discard(self) -> None:
        """Delete what has arrived; nothing if the file has its name."""
        with contextlib.suppress(OSError):  # the disk is still full
            self._file.close()
        self._part.unlink(missing_ok=True)


def try_lock(descriptor: int) -> bool:
    """Lock an open file, unless it is locked; the system unlocks it when it is closed, or the process ends."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Store:
    """The folder of --batch-dir."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        """Create what is absent. `clock`: Unix seconds. Raises OSError, sqlite3.Error."""
        self._files = folder / "files"
        self._journals = folder / "running"
        for path in (folder, self._files, self._journals):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lock_path = folder / "lock"
        self.clock = clock
        self._lock = threading.Lock()
        self._db = sqlite3.connect(
            folder / DATABASE_NAME, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.executescript(SCHEMA)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def content_path(self, file_id: str) -> Path:
        """Return where the content of a file lies. `file_id`: of an object of this store."""
        return self._files / file_id

    def journal_path(self, batch_id: str) -> Path:
        """Return where the answers of a batch are recorded until they become its results."""
        return self._journals / f"{batch_id}.jsonl"

    def usage(self, owner: str) -> tuple[int, int]:
        """Return number and bytes of an owner's files."""
        with self._lock:
            row = self._db.execute("SELECT count(*), coalesce(sum(num_bytes), 0) FROM files WHERE owner = ?", (owner,))
            num_files, num_bytes = row.fetchone()
        return num_files, num_bytes

    def num_open_batches(self, owner: str) -> int:
        """Return how many of an owner's batches have not ended."""
        query = f"SELECT count(*) FROM batches WHERE owner = ? AND {IS_OPEN}"
        with self._lock:
            (number,) = self._db.execute(query, (owner, *OPEN)).fetchone()
        return int(number)

    def new_upload(self) -> "Upload":
        """Return the beginning of a file that is being uploaded. Raises OSError."""
        return Upload(self.content_path(f"file-{secrets.token_hex(12)}"))

    def add_file(self, owner: str, name: str, upload: "Upload") -> Object:
        """Store a complete upload and return its object. Raises OSError, sqlite3.Error; nothing is left then."""
        file = self._file_object(upload.path.name, name, "batch", upload.num_bytes)
        try:
            upload.finish()
            with self._lock:
                self._insert_file(owner, file)
        except BaseException:
            self.discard(file["id"])
            raise
        return file

    def delete_parts(self) -> None:
        """Delete what killed servers have left of uploads and results. Raises OSError."""
        for part in self._files.glob(f"file-*{PART}"):
            with contextlib.suppress(FileNotFoundError), part.open("r+b") as file:  # it may be complete by now
                if try_lock(file.fileno()):
                    part.unlink()

    def discard(self, file_id: str) -> None:
        """Delete the content, whole or begun, of a file that has no row: nobody would find it again."""
        path = self.content_path(file_id)
        for left in (path.with_suffix(PART), path):
            left.unlink(missing_ok=True)

    def add_batch(self, owner: str, batch: Object) -> Object:
        """Store a new batch; add its id."""
        batch = {"id": f"batch_{secrets.token_hex(12)}", **batch}
        with self._lock:
            self._db.execute(
                "INSERT INTO batches (id, owner, status, object) VALUES (?, ?, ?, ?)",
                (batch["id"], owner, batch["status"], json.dumps(batch)),
            )
        return batch

    def get(self, table: Table, owner: str, object_id: str) -> Object | None:
        """Return an owner's file or batch, or None."""
        with self._lock:
            query = f"SELECT object FROM {table} WHERE id = ? AND owner = ?"
            row = self._db.execute(query, (object_id, owner)).fetchone()
        return json.loads(row[0]) if row else None

    def page(
        self, table: Table, owner: str, after: str | None, limit: int, *, newest_first: bool, purpose: str | None = None
    ) -> list[Object]:
        """Return at most `limit` objects that follow the object `after`, in order of creation. `purpose`: only these
        files."""
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, values = "owner = ?", [owner]
        if purpose is not None:
            where += " AND json_extract(object, '$.purpose') = ?"
            values.append(purpose)
        if after is not None:
            where += f" AND number {sign} (SELECT number FROM {table} WHERE id = ? AND owner = ?)"
            values += [after, owner]
        query = f"SELECT object FROM {table} WHERE {where} ORDER BY number {order} LIMIT ?"
        with self._lock:
            rows = self._db.execute(query, (*values, limit)).fetchall()
        return [json.loads(row[0]) for row in rows]

    def delete_file(self, owner: str, file_id: str) -> bool:
        """Delete a file that no open batch reads. Returns False if one reads it."""
        reads = f"owner = ? AND {IS_OPEN} AND json_extract(object, '$.input_file_id') = ?"
        with self._transaction():
            query = f"SELECT EXISTS (SELECT 1 FROM batches WHERE {reads})"
            (is_read,) = self._db.execute(query, (owner, *OPEN, file_id)).fetchone()
            if is_read:
                return False
            self._db.execute("DELETE FROM files WHERE id = ? AND owner = ?", (file_id, owner))
        self.content_path(file_id).unlink(missing_ok=True)
        return True

    def open_batches(self) -> list[tuple[str, Object]]:
        """Return (owner, batch) of all batches that have not ended, oldest first."""
        query = f"SELECT owner, object FROM batches WHERE {IS_OPEN} ORDER BY number"
        with self._lock:
            return [(owner, json.loads(text)) for owner, text in self._db.execute(query, OPEN).fetchall()]

    def update_batch(self, batch_id: str, statuses: tuple[str, ...], changes: Object) -> Object:
        """Change a batch if its status is one of `statuses`, in one transaction; return it as it is then.

        Raises sqlite3.Error.
        """
        with self._transaction():
            return self._update(batch_id, statuses, changes)

    def end_batch(self, owner: str, batch_id: str, changes: Object, files: dict[str, tuple[str, int]]) -> None:
        """End a batch and make its results files of the owner, in one transaction.

        `files`: by file id the name and the bytes of contents that are written already.
        """
        with self._transaction():
            for file_id, (name, num_bytes) in files.items():
                self._insert_file(owner, self._file_object(file_id, name, "batch_output", num_bytes))
            self._update(batch_id, OPEN, changes)

    def delete_ended(self, max_batches: int, before_s: float) -> int:
        """Delete batches that ended before this Unix time, and all ended ones but an owner's newest `max_batches`.

        Their results go with them, and answers that never became results; their input files stay. Returns the number
        of batches. After a kill in the middle the next call deletes the rest. Raises OSError, sqlite3.Error.
        """
        query = f"""
            SELECT id, object FROM (
                SELECT id, status, object, row_number() OVER (PARTITION BY owner ORDER BY number DESC) AS place
                FROM batches WHERE NOT {IS_OPEN})
            WHERE place > ? OR json_extract(object, '$.' || status || '_at') < ?
        """
        with self._lock:
            rows = self._db.execute(query, (*OPEN, max_batches, before_s)).fetchall()
        if rows:
            self._delete_batches([(batch_id, json.loads(text)) for batch_id, text in rows])
        return len(rows)

    def _delete_batches(self, batches: list[tuple[str, Object]]) -> None:
        """Delete contents before rows: a content without a row would never be found again."""
        with self._transaction():
            for batch_id, batch in batches:
                for file_id in filter(None, (batch["output_file_id"], batch["error_file_id"])):
                    self.content_path(file_id).unlink(missing_ok=True)
                    self._db.execute("DELETE FROM files WHERE id = ?", (file_id,))
                self.journal_path(batch_id).unlink(missing_ok=True)
                self._db.execute("DELETE FROM batches WHERE id = ?", (batch_id,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the lock, and make the changes of the block together or not at all. An error is raised as it came."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite itself has ended it if the disk is full
                    self._db.execute("ROLLBACK")
                raise

    def _update(self, batch_id: str, statuses: tuple[str, ...], changes: Object) -> Object:
        (text,) = self._db.execute("SELECT object FROM batches WHERE id = ?", (batch_id,)).fetchone()
        batch: Object = json.loads(text)
        if batch["status"] in statuses:
            batch |= changes
            self._db.execute(
                "UPDATE batches SET status = ?, object = ? WHERE id = ?", (batch["status"], json.dumps(batch), batch_id)
            )
        return batch

    def _insert_file(self, owner: str, file: Object) -> None:
        self._db.execute(
            "INSERT INTO files (id, owner, num_bytes, object) VALUES (?, ?, ?, ?)",
            (file["id"], owner, file["bytes"], json.dumps(file)),
        )

    def _file_object(self, file_id: str, name: str, purpose: str, num_bytes: int) -> Object:
        return {
            "id": file_id,
            "object": "file",
            "bytes": num_bytes,
            "created_at": int(self.clock()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
