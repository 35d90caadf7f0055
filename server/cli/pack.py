"""`smoe pack`: write a model's weights as they are used, so that a server starts without loading them; check a pack."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import typer

from engine.capacity.checkpoint_files import vocabulary_size
from engine.capacity.machine.host_resources import format_bytes
from engine.capacity.pack_messages import PackReport, PackRequest
from engine.capacity.packs import check_pack
from engine.errors import EngineConfigError
from server.cli.errors import INTERRUPTED, report_error
from server.cli.settings.loading import load_settings
from server.cli.terminal_text import escape_controls
from server.engine_client.launch import package_root
from server.lifecycle.text_checks import check_texts
from server.model_files.location import ModelNotFoundError, locate_model
from server.settings.engine_config import engine_config
from server.settings.settings import Settings
from server.settings.sources import SettingsError, engine_environment, model_stores

PROGRAM = (sys.executable, "-m", "engine.startup.packing")


class PackError(Exception):
    """A model that cannot be packed, or a damaged pack. One line."""


def run(flags: Mapping[str, Any], output: Path | None, *, check: bool) -> int:
    """Pack the model, or check the pack, that the flags name; return the exit code: 0, or 2 for an error."""
    try:
        settings = load_settings(flags)
        if check and output is not None:
            raise PackError("--check and --output exclude each other: give one")
        if output is None and not check:
            raise PackError("give the folder of the new pack: --output DIR, or check a pack: --check")
        source = locate_model(settings.model, model_stores())
        if output is None:
            _check(source)
        else:
            _pack(settings, source, output.expanduser().absolute())
    except (SettingsError, ModelNotFoundError, EngineConfigError, PackError) as error:
        return report_error(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _check(directory: Path) -> None:
    with _progress_line() as show:
        num_tensors = check_pack(directory, lambda done, total: show(PackReport("checksums", done, total)))
    typer.echo(f"{escape_controls(str(directory))}: all {num_tensors:,} checksums match")


def _pack(settings: Settings, source: Path, target: Path) -> None:
    """Run the process that packs, and print the result with the next command. Raises PackError, and EngineConfigError
    for a bad config."""
    start_s = time.monotonic()
    request = PackRequest(engine_config(settings, source), str(target))
    _check_texts(settings, source, vocabulary_size(request.config))
    last: PackReport | None = None
    with _progress_line() as show:
        for last in _reports(request):
            show(last)
    if last is None or last.phase != "done":
        raise PackError(last.error if last and last.error else "the process that packs has ended without a result")
    for warning in last.warnings:
        typer.echo(f"smoe: warning: {escape_controls(warning)}", err=True)
    seconds = time.monotonic() - start_s
    typer.echo(f"{escape_controls(str(target))}: {format_bytes(last.done_bytes)}, packed in {seconds:.0f} s")
    typer.echo(escape_controls(shlex.join(["smoe", "serve", str(target)])))


def _check_texts(settings: Settings, source: Path, vocab_size: int) -> None:
    """Raise PackError for what no server of the pack would accept, before anything is written."""
    for part in check_texts(settings, source, vocab_size):
        if not part.is_ok:
            raise PackError(part.detail)


def _reports(request: PackRequest) -> Iterator[PackReport]:
    """Start the process and yield its reports until it ends."""
    command = (*PROGRAM, str(os.getpid()))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=package_root(), env=engine_environment()
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(request))
            process.stdin.close()
        for line in process.stdout:
            yield msgspec.json.decode(line, type=PackReport)


@contextlib.contextmanager
def _progress_line() -> Iterator[Any]:
    """Give a function that shows a report, in one line that is written over; only on a terminal."""
    is_shown = sys.stderr.isatty()

    def show(report: PackReport) -> None:
        if is_shown and not report.error:
            share = f" {report.done_bytes / report.total_bytes:4.0%}" if report.total_bytes else ""
            sys.stderr.write(f"\r\x1b[K{report.phase}{share}")
            sys.stderr.flush()

    try:
        yield show
    finally:
        if is_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
