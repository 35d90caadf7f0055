"""The results of a batch: its journal as two files, answers and errors."""

import json
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from server.batch.journal import head_of
from server.batch.lines import go_on
from server.batch.store import PART, create_part

EXPIRED = {"code": "batch_expired", "message": "The batch expired before this request was answered."}


def write_results(
    journal: Path, expired_ids: Iterable[str], output: Path, errors: Path, *, before_each: Callable[[], None] = go_on
) -> None:
    """Write the journal's answers with status 200 to `output` and all others to `errors`.

    `expired_ids`: custom ids of requests without an answer, which become errors too. A file that would be empty is not
    written. May be repeated after a kill. Raises OSError, and what `before_each` raises before a line.
    """
    parts = [path.with_suffix(PART) for path in (output, errors)]
    for part in parts:
        part.unlink(missing_ok=True)  # of a server that was killed
    with create_part(parts[0]) as good, create_part(parts[1]) as bad:
        if journal.exists():
            with journal.open("rb") as file:
                for line in file:
                    before_each()
                    (bad if head_of(line)["error"] else good).write(line)
        for custom_id in expired_ids:
            bad.write(_expired_line(custom_id))
        for written, part, path in zip((good, bad), parts, (output, errors), strict=True):
            written.flush()
            if written.tell():
                os.replace(part, path)
            else:
                part.unlink()


def _expired_line(custom_id: str) -> bytes:
    line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": None, "error": EXPIRED}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
