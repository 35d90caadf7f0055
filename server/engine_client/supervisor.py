"""Run the engine process: start it, watch it, and replace it after a crash.

Everything runs on the event loop; nothing here blocks it.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from engine.capacity.packs import lost_weights_reason
from engine.config import EngineConfig
from engine.messages import FromEngine, Progress, Ready, Start, StepDone, StepPart, ToEngine
from engine.types import Vocabulary
from server.engine_client.inflight import CrashReport
from server.engine_client.launch import ENGINE_COMMAND, LaunchedEngine
from server.engine_client.output_collector import CRASHED, SHUTTING_DOWN
from server.engine_client.process import EngineProcessHandle, ProcessExit
from server.engine_client.restart_policy import MAX_FAILED_STARTS, SERVED_S, RestartPolicy
from server.engine_client.status import EngineStatus, Phase
from server.engine_client.watchdog import DEFAULT_TIMEOUTS, Watchdog, WatchdogTimeouts
from server.fairness.event_loop import BackgroundTasks

logger = logging.getLogger("smoe.engine")

STOP_GRACE_S = 0.5  # for a process to exit after its socket was closed


@dataclass(frozen=True)
class SupervisorConfig:
    """The engine process to run, and whether to replace it."""

    command: Sequence[str] = ENGINE_COMMAND  # see launch_engine()
    restarts: bool = False  # replace a process that crashes after one was ready
    timeouts: WatchdogTimeouts = DEFAULT_TIMEOUTS


@dataclass(frozen=True)
class EngineEvents:
    """Callbacks of the supervisor. All run on the event loop."""

    on_message: Callable[[FromEngine], None]  # every message except Progress and Ready
    on_ready: Callable[[], None]  # a process has loaded
    on_unnamed_adapter: Callable[[str], None]  # it has a LoRA adapter that was unloaded meanwhile: with this digest
    on_crash: Callable[[], CrashReport]  # a process is gone: sort its requests
    on_end: Callable[[str], None]  # no process will follow; the argument is the reason for clients
    on_tick: Callable[[float], None]  # at each watchdog observation, with time.monotonic()
    on_status: Callable[[EngineStatus], None]  # each new status
    on_restart: Callable[[], None]  # each process except the first


class EngineSupervisor:
    """Owner of the engine process and of its status."""

    def __init__(self, config: SupervisorConfig, events: EngineEvents) -> None:
        self.ready: Ready | None = None  # message of the last process that became ready
        self.is_serving = False  # the current process has loaded
        self.status = EngineStatus("loading")
        self._timeouts = config.timeouts
        self._policy = RestartPolicy() if config.restarts else None
        self._events = events
        self._start_message: Start | None = None
        self._new_process = partial(EngineProcessHandle, config.command, self._receive, self._on_exit)
        self._process = self._new_process()
        self._ready_s: float | None = None  # when the current process became ready
        self._gave_output = False  # the current process, for any request
        self._is_draining = False
        self._tasks = BackgroundTasks(self._on_error)

    @property
    def pid(self) -> int | None:
        """Process id of the running engine."""
        return self._process.pid

    async def adopt(self, launched: LaunchedEngine) -> None:
        """Take over the first process, which was launched ahead of start()."""
        await self._process.adopt(launched)

    async def start(self, config: EngineConfig, vocabulary: Vocabulary | None) -> None:
        """Start the process and send it the config. Returns before anything is loaded. Raises OSError."""
        self._start_message = Start(config, vocabulary)
        await self._process.start(self._start_message)
        self._tasks.spawn(self._watch())

    def send(self, message: ToEngine) -> None:
        """Send a message to the current process. Does nothing if it is dead."""
        self._process.send(message)

    def add_adapter(self, name: str, directory: str, digest: str) -> str | None:
        """Record an adapter that the process has loaded: the next one will load it too. Return the digest of the one
        that had the name before, if there was one."""
        assert self.ready is not None
        replaced = self.ready.adapters.get(name)
        self._set_adapters(self._directories() | {name: directory}, self.ready.adapters | {name: digest})
        return replaced

    def remove_adapter(self, name: str) -> str:
        """Forget an adapter's name, and return its digest."""
        assert self.ready is not None
        directories, digests = self._directories(), dict(self.ready.adapters)
        directories.pop(name, None)
        digest = digests.pop(name)
        self._set_adapters(directories, digests)
        return digest

    def _take_adapters(self, restarted: Ready) -> None:
        """Name the adapters that a restarted engine has from now on, and log which ones changed. Requests that were
        prepared for other files name their digest, which the engine does not have: they end with an error."""
        assert self.ready is not None
        for name, digest in self.ready.adapters.items():  # without those that were unloaded while it loaded
            directory = self._directories().get(name)
            if name not in restarted.adapters:
                reason = restarted.dropped_adapters.get(name, "it was not loaded")
                logger.warning("the LoRA adapter %s is served no more: %s", ascii(name), reason)
                self.remove_adapter(name)
            elif restarted.adapters[name] != digest:
                logger.warning("the LoRA adapter %s has other files than before: %s", ascii(name), directory)
                self._set_adapters(self._directories(), self.ready.adapters | {name: restarted.adapters[name]})
        for digest in set(restarted.adapters.values()) - set(self.ready.adapters.values()):
            self._events.on_unnamed_adapter(digest)

    def _directories(self) -> dict[str, str]:
        assert self._start_message is not None
        return dict(self._start_message.config.lora)

    def _set_adapters(self, directories: dict[str, str], digests: dict[str, str]) -> None:
        assert self._start_message is not None and self.ready is not None
        config = msgspec.structs.replace(self._start_message.config, lora=directories)
        self._start_message = msgspec.structs.replace(self._start_message, config=config)
        self.ready = msgspec.structs.replace(self.ready, adapters=digests)

    def drain(self) -> None:
        """Report "draining" from now on instead of "loading" and "ready". The process keeps running."""
        self._is_draining = True
        if self.status.phase != "dead":
            self._set_status(self.status)

    async def stop(self) -> None:
        """End the process. Idempotent."""
        self._end(SHUTTING_DOWN, exit_code=0, reason_for_clients=SHUTTING_DOWN)
        await self._tasks.cancel()
        await self._process.end(STOP_GRACE_S)

    def _receive(self, message: FromEngine) -> None:
        match message:
            case Progress():
                phase: Phase = "loading" if self.ready is None else "restarting"
                self._set_status(EngineStatus(phase, message.phase, message.loaded_bytes, message.total_bytes))
            case Ready():
                self._on_ready(message)
            case _:
                if isinstance(message, StepPart) or (isinstance(message, StepDone) and message.step.outputs):
                    self._gave_output = True
                self._events.on_message(message)

    def _on_ready(self, ready: Ready) -> None:
        if self.ready is not None and (other := _difference(self.ready, ready)):
            # Requests were prepared and streams begun with the first engine: results could not be told apart.
            self._end(f"{other}: restart the server")
            return
        if self.ready is not None:
            logger.warning("the engine is ready again")
            self._take_adapters(ready)
            ready = msgspec.structs.replace(ready, adapters=self.ready.adapters, fingerprint=self.ready.fingerprint)
        self.ready, self.is_serving, self._ready_s = ready, True, time.monotonic()
        self._set_status(EngineStatus("ready", "", ready.weight_bytes, ready.weight_bytes))
        self._events.on_ready()

    def _set_status(self, status: EngineStatus) -> None:
        if self._is_draining and status.phase in ("loading", "ready"):
            status = replace(status, phase="draining")
        self.status = status
        self._events.on_status(status)

    def _on_exit(self, process_exit: ProcessExit) -> None:
        """Replace a process that is gone or useless, or give up."""
        if self.status.phase == "dead":
            return
        crash = self._events.on_crash()
        delay_s = self._restart_delay_s(has_culprit=crash.culprit is not None or crash.culprit_left)
        if delay_s is None:
            gave_up = self._policy is not None and self.ready is not None
            why = f"{MAX_FAILED_STARTS} engine processes in a row failed; the last one: " if gave_up else ""
            self._end(f"{why}{process_exit.message}", exit_code=process_exit.exit_code)
            return
        logger.warning("%s: %s; the next process starts in %.1f s", process_exit.message, crash.summary(), delay_s)
        self._reset()
        self._set_status(EngineStatus("restarting"))
        self._tasks.spawn(self._restart(self._process, delay_s))

    def _restart_delay_s(self, *, has_culprit: bool) -> float | None:
        """Seconds until the next process starts, or None to give up."""
        if self.ready is None or self._policy is None:
            return None
        was_ready_long = self._ready_s is not None and time.monotonic() - self._ready_s >= SERVED_S
        return self._policy.next_delay_s(has_served=self._gave_output or was_ready_long, has_culprit=has_culprit)

    def _reset(self) -> None:
        """Forget the state of a process that is gone."""
        self.is_serving = self._gave_output = False
        self._ready_s = None

    async def _restart(self, previous: EngineProcessHandle, delay_s: float) -> None:
        """Start the next process after the previous one and its ranks have exited: it needs their memory."""
        logger.info("the engine process %s", await previous.end())
        await self._report_lost_weights(had_bus_error=previous.had_bus_error)
        await previous.wait_for_ranks()
        await asyncio.sleep(delay_s)
        self._process = self._new_process()
        self._events.on_restart()
        assert self._start_message is not None and self.ready is not None
        try:
            await self._process.start(_for_restart(self._start_message, self.ready))
        except OSError as error:
            self._process.fail(ProcessExit(f"the engine process cannot be started: {error.strerror}"))

    async def _report_lost_weights(self, *, had_bus_error: bool) -> None:
        """Log which weights were lost, if the engine had mapped them from a pack that is damaged now."""
        assert self._start_message is not None and self.ready is not None
        if had_bus_error or self.ready.mapped_bytes:
            look = partial(lost_weights_reason, self._start_message.config.model, had_bus_error=had_bus_error)
            if reason := await asyncio.to_thread(look):
                logger.error("%s", reason)

    def _end(self, message: str, *, exit_code: int = 1, reason_for_clients: str = CRASHED) -> None:
        """Enter the phase "dead". Only the first call has an effect."""
        if self.status.phase == "dead":
            return
        self._reset()
        self._set_status(replace(self.status, phase="dead", message=message, exit_code=exit_code))
        self._events.on_end(reason_for_clients)
        self._process.fail(ProcessExit(message))

    async def _watch(self) -> None:
        """Watch the current process until the engine is dead. Ticks also while there is no process."""
        process = watchdog = None
        while self.status.phase != "dead":
            now_s = time.monotonic()
            if watchdog is None or process is not self._process:
                process, watchdog = self._process, Watchdog(now_s)
            self._act_on_stall(watchdog.observe(process.num_beats, now_s))
            self._events.on_tick(now_s)
            await asyncio.sleep(self._timeouts.observe_interval_s)

    def _act_on_stall(self, stalled_s: float) -> None:
        """Report or kill a process that has made no progress for `stalled_s` seconds."""
        timeouts = self._timeouts
        if stalled_s >= (timeouts.kill_after_s if self.is_serving else timeouts.kill_loading_after_s):
            self._process.fail(ProcessExit(f"the engine has made no progress for {stalled_s:.0f} s"))
        elif self.is_serving and stalled_s >= timeouts.stuck_after_s and self.status.phase != "stuck":
            logger.warning("the engine makes no progress; it is killed after %.0f s without", timeouts.kill_after_s)
            self._set_status(replace(self.status, phase="stuck"))
        elif stalled_s == 0.0 and self.status.phase == "stuck":
            logger.warning("the engine makes progress again")
            self._set_status(replace(self.status, phase="ready"))

    def _on_error(self, error: BaseException) -> None:
        """End the engine if its supervision failed: nothing would notice a crash."""
        logger.error("the engine supervisor failed", exc_info=error)
        self._end("the engine supervisor failed")


def _difference(first: Ready, restarted: Ready) -> str:
    """Return why the restarted engine would give other results than the first one; empty if it does not."""
    if first.checkpoint_files != restarted.checkpoint_files:
        return "the checkpoint's files were replaced while the server was running"
    if _numerics(first) != _numerics(restarted):
        return "the restarted engine has other numerics than the first one"
    return ""


def _numerics(ready: Ready) -> str:
    """Return the fingerprint without its end, which names the weights. The same files get another name when their
    list of sums is written again."""
    return ready.fingerprint.partition("-weights-")[0]


def _for_restart(start: Start, ready: Ready) -> Start:
    """The start message with the limits that the first process derived, under which requests were accepted. Adapters
    whose files are gone are left out: the others are served on."""
    config = msgspec.structs.replace(
        start.config, num_kv_blocks=ready.num_blocks, max_model_len=ready.max_model_len, drop_bad_adapters=True
    )
    return msgspec.structs.replace(start, config=config)
