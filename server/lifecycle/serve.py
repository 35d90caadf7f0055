"""`smoe serve`: bind the port, launch the engine, and import the server while the engine imports torch.

Both take more than a second, and together they are most of a start. So the launch comes before all that is large: this
module and those that it imports at its top stay small (tests/test_layering.py). Mistakes of the command line, a model
that is not there and a port in use are found before a process is launched.
"""

import asyncio
from collections.abc import Sequence

import uvloop

from engine.assertions import NO_ASSERTIONS, are_assertions_off
from engine.garbage_collection import without_collections
from server.engine_client.launch import ENGINE_COMMAND, LaunchedEngine, launch_engine
from server.http.connections import raise_file_limit
from server.http.listener import ListenError, listen_as
from server.lifecycle.errors import StartError, process_error
from server.lifecycle.interpreter import tune_interpreter
from server.lifecycle.restart.early_hangup import EarlyHangup
from server.lifecycle.restart.predecessor import Inheritance
from server.model_files.location import ModelNotFoundError, locate_model
from server.observability.log_stream import logging_to
from server.settings.settings import Settings
from server.settings.sources import model_stores


def serve(
    settings: Settings,
    started_s: float,
    engine_command: Sequence[str] = ENGINE_COMMAND,
    *,
    launcher_attempt: int | None = None,
    hangup: EarlyHangup | None = None,
) -> int:
    """Run the server until a signal or the engine's end; return the exit code. Raises StartError.

    `started_s`: time.monotonic() at the start of the command. `engine_command`: see launch_engine().
    `launcher_attempt`: see server/settings/sources.py; torchrun starts the engine again, together with the ranks of
    other hosts. `hangup`: the handler of SIGHUP until now.
    """
    if are_assertions_off():
        raise StartError(NO_ASSERTIONS)
    tune_interpreter()
    inherited = Inheritance()
    try:
        model_dir = locate_model(settings.model, model_stores())
        listener = listen_as(settings, inherited.listener)
    except (ModelNotFoundError, ListenError) as error:
        raise StartError(str(error)) from None
    with (
        listener,
        logging_to(level=settings.log_level, style=settings.log_format) as output,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        raise_file_limit()  # the engine inherits it
        engine = _launch(runner, engine_command)
        try:
            with without_collections():
                from server.lifecycle.server import Server  # only now: see above
            server = Server(
                settings, model_dir, listener, started_s, inherited, output, engine_command, launcher_attempt
            )
            code = runner.run(server.run(engine, hangup))
        finally:
            engine.end()
    server.finish()
    return code


def _launch(runner: asyncio.Runner, command: Sequence[str]) -> LaunchedEngine:
    try:
        return runner.run(launch_engine(command))
    except OSError as error:
        raise StartError(process_error(error), exit_code=1) from None
