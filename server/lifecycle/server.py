"""One run of `smoe serve`: answer 503 while the engine loads, serve, shut down, return the exit code."""

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from engine.capacity.machine.host_resources import memory_limit_bytes
from engine.messages import Ready
from server.api import playground_files
from server.api.app import create_app
from server.api.routes.files import UPLOAD_PATHS
from server.batch.service import BatchService
from server.engine_client.client import EngineClient
from server.engine_client.launch import LaunchedEngine
from server.engine_client.status import EngineStatus
from server.engine_client.supervisor import SupervisorConfig
from server.fairness.budgets import request_memory_bytes
from server.fairness.byte_budget import ByteBudget
from server.fairness.event_loop import LagProbe
from server.fairness.request_memory import RequestMemory
from server.generation.state import LoraOptions, ServerState, TextFrontend, seed_source
from server.http.bounded_reads import BoundedReadProtocol
from server.http.certificate import CertificateError
from server.http.connections import Connections, max_connections, raise_file_limit
from server.http.cross_site import accepted_hosts
from server.http.limits.read_limiter import MAX_BODY_READS, ReadLimiter
from server.http.listener import is_loopback, is_unix, names_of, url_of
from server.http.load_shedding import LoadShedding
from server.http.middleware import with_middleware
from server.http.tenant_of_head import tenant_finder
from server.http.uvicorn_server import HttpServer, RequestTracker
from server.lifecycle.batches import batch_service
from server.lifecycle.errors import StartError, process_error
from server.lifecycle.memory_bounds import apply_memory_share, memory_monitor, with_server_memory
from server.lifecycle.restart.early_hangup import EarlyHangup
from server.lifecycle.restart.keeper import hold_orders, hold_signals
from server.lifecycle.restart.predecessor import Inheritance
from server.lifecycle.restart.reload import Reload
from server.lifecycle.shutdown import Shutdown
from server.lifecycle.signals import SignalHandlers
from server.lifecycle.startup_report import StartupReport, held_bytes, lines_when_ready
from server.lifecycle.text_frontend import load_texts
from server.lifecycle.trace_export import start_tracing
from server.model_files.location import described
from server.observability.access_log import AccessLog
from server.observability.cached_weights import CachedWeightsProbe
from server.observability.log_stream import NonBlockingStream
from server.observability.loop_watch import LoopWatch
from server.observability.metrics import Metrics
from server.observability.throughput_log import ThroughputLog
from server.sandbox.errors import SandboxError
from server.sandbox.job import limits_within, num_workers_within
from server.sandbox.pool import SandboxPool
from server.settings.engine_config import engine_config
from server.settings.settings import Settings
from server.tokenizer.tokenizer import TokenizerError

FINISH_IDLE_S = 1.0  # after a hand-over: a client that uses its connection until then gets an answer that closes it
FLUSH_S = 5.0  # part of the shutdown timeout in which the last events are sent; at most half of it
VERSION = importlib.metadata.version("smoe")
log = logging.getLogger(__name__)


class Server:
    """One run of `smoe serve`. Owns the engine client and the HTTP server."""

    def __init__(
        self,
        settings: Settings,
        model_dir: Path,
        listener: socket.socket,
        started_s: float,
        inherited: Inheritance,
        output: NonBlockingStream,
        engine_command: Sequence[str],
        launcher_attempt: int | None,
    ) -> None:
        """See serve(). `engine_command` starts the engines after the first one; `output` gets the lines of the start.
        Raises StartError."""
        self._settings = settings
        self._engine_config = with_server_memory(engine_config(settings, model_dir, launcher_attempt), settings)
        self._model_dir = model_dir
        self._listener = listener
        self._started_s = started_s
        self._inherited = inherited
        self._flush_s = min(FLUSH_S, settings.shutdown_timeout / 2)
        self._report = StartupReport(output, style=settings.log_format)
        self._names = settings.model_names
        self._tracing = start_tracing(settings.otlp_traces_endpoint, VERSION, self._names[0])
        self._access_log = AccessLog(listener=self._tracing)
        self._metrics = Metrics(self._names[0], settings.metrics_compat)
        self._client = self._new_client(SupervisorConfig(engine_command, restarts=launcher_attempt is None))
        self._connections = Connections(max_connections(raise_file_limit()))
        self._num_tenants = max(1, len(settings.api_keys))
        self._request_memory = RequestMemory(request_memory_bytes(settings), self._num_tenants)
        self._memory = memory_monitor(memory_limit_bytes(), self._request_memory)
        self._state = self._new_state()
        self._sandbox = self._new_sandbox()
        app = create_app(self._state)
        self._batches = self._new_batches(app)
        self._in_flight = RequestTracker(self._app_with_middleware(app))
        self._shutdown = self._new_shutdown()
        self._reload = self._new_reload()
        self._http: HttpServer | None = None
        self._texts: TextFrontend | None = None
        self._ahead: asyncio.Task[None] | None = None  # work for later requests
        self._batch_runs: asyncio.Task[None] | None = None

    async def run(self, engine: LaunchedEngine, hangup: EarlyHangup | None = None) -> int:
        """Load, serve and shut down; return the exit code. `engine`: the first one; `hangup`: see serve()."""
        loop = asyncio.get_running_loop()
        SignalHandlers(self._shutdown, self._reload, self._report, num_hosts=self._settings.nnodes).install(hangup)
        self._inherited.watch(
            on_predecessor_gone=self._on_predecessor_gone, on_first_process_gone=self._on_first_process_gone
        )
        self._metrics.watch(
            num_connections=lambda: len(self._connections), num_tasks=lambda: len(asyncio.all_tasks(loop))
        )
        watch = LoopWatch() if self._settings.watch_event_loop else None
        if watch is not None:
            watch.start()
        probes = [loop.create_task(LagProbe(self._metrics.event_loop_lag).run())]
        probes.append(loop.create_task(ThroughputLog(self._metrics.recent).run()))
        probes.append(loop.create_task(CachedWeightsProbe(self._model_dir, self._metrics.weights_cached).run()))
        if self._memory is not None:
            probes.append(loop.create_task(self._memory.run()))
        async with self._http_server():
            await self._load(engine)
            code = await self._shutdown.run()
            self._sandbox.close()  # what still waits for it ends with an error
        self._reload.close()
        if watch is not None:
            watch.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        hold_orders()
        if self._reload.is_handed_over:
            hold_signals()
        for probe in probes:
            probe.cancel()
        return code

    def finish(self) -> None:
        """The last act, after the event loop: see Reload.finish()."""
        self._reload.finish()

    def _on_predecessor_gone(self) -> None:
        """End: whoever watches the server has seen it end, or holds the port open for one that nobody would answer."""
        self._shutdown.fail("the process that this one was to replace is gone", 1)

    def _on_first_process_gone(self) -> None:
        """Free the port and drain: whoever started the server saw it end, and may start another one."""
        if self._http is not None and self._state.texts is not None:
            self._http.stop_accepting()
            self._inherited.free_port(self._listener)
        self._report.line("stopping: the first process of this server was killed")
        self._shutdown.request(signal.SIGTERM)

    def _on_successors_lost(self) -> None:
        """Refuse connections, which nobody would answer, and end soon: whoever started the server can start another."""
        if self._shutdown.hasten():
            self._inherited.free_port(self._listener)
            self._report.line("stopping: the process that has taken over has ended")

    async def _hand_over(self) -> None:
        """Accept nothing more, close idle connections, drain the others."""
        assert self._http is not None
        self._http.stop_accepting()
        self._connections.is_finishing = True
        await asyncio.sleep(FINISH_IDLE_S)
        self._connections.finish_idle()
        self._shutdown.hand_over(self._settings.reload_timeout)

    def _new_client(self, supervision: SupervisorConfig) -> EngineClient:
        """Make what starts engines and exchanges messages with them."""
        metrics = self._metrics
        return EngineClient(
            supervision, on_step=metrics.record_step, on_status=self._on_status, on_restart=metrics.engine_restarted
        )

    def _new_sandbox(self) -> SandboxPool:
        limit_bytes = memory_limit_bytes()
        return SandboxPool(num_workers_within(limit_bytes), self._num_tenants, limits=limits_within(limit_bytes))

    def _new_batches(self, app: FastAPI) -> BatchService | None:
        """Enable files and batches on `app`; None without --batch-dir. Raises StartError."""
        return batch_service(
            app,
            self._state,
            self._settings,
            request_memory=self._request_memory,
            on_http=self._metrics.http,
            access_log=self._access_log,
        )

    def _new_shutdown(self) -> Shutdown:
        drain_s = self._settings.shutdown_timeout - self._flush_s
        return Shutdown(self._client, self._in_flight, self._connections, self._report, drain_timeout_s=drain_s)

    def _new_reload(self) -> Reload:
        """Make what hands the server over to a new process on SIGHUP."""
        return Reload(
            self._listener,
            self._report,
            self._inherited,
            timeout_s=self._settings.reload_timeout,
            hand_over=self._hand_over,
            on_hangup=self._shutdown.on_signal,
            on_lost=self._on_successors_lost,
        )

    def _new_state(self) -> ServerState:
        """Make the state that the handlers of requests share; texts come when they are loaded."""
        settings = self._settings
        return ServerState(
            engine=self._client,
            metrics=self._metrics,
            model_names=self._names,
            lora=LoraOptions(tuple(settings.adapter_directories), settings.enable_runtime_lora),
            max_num_queued=settings.max_num_queued_reqs,
            max_num_queued_tokens=settings.max_num_queued_tokens,
            num_tenants=self._num_tenants,
            reply_memory=ByteBudget(request_memory_bytes(settings), self._num_tenants),
            memory=self._memory,
            version=VERSION,
            created_s=int(time.time()),
            draw_seed=seed_source(settings.seed),
            by_priority=settings.scheduling_policy == "priority",
            strict_params=settings.strict_params,
            strict_roles=settings.strict_roles,
            tool_emulation=settings.tool_emulation,
            embeddings=settings.embeddings,
        )

    async def _run_batches(self, service: BatchService) -> None:
        """Run batches until the server is going to end. Open ones continue at the next start."""
        try:
            await self._shutdown.unless_requested(service.run())
        except Exception:
            log.exception("batches are not run any more")

    def _app_with_middleware(self, app: FastAPI) -> ASGIApp:
        settings = self._settings
        own_names = (settings.host, *names_of(self._listener))
        return with_middleware(
            app,
            api_keys=settings.api_keys,
            open_paths=playground_files.open_paths(),
            metrics_auth=settings.metrics_auth,
            max_body_bytes=settings.max_body_bytes,
            upload_paths=frozenset() if settings.batch_dir is None else UPLOAD_PATHS,
            max_upload_bytes=settings.max_batch_file_bytes,
            request_memory=self._request_memory,
            allowed_origins=settings.allowed_origins,
            accepted_hosts=accepted_hosts(settings.allowed_hosts, own_names, is_loopback=is_loopback(self._listener)),
            root_path=settings.root_path,
            on_http=self._metrics.http,
            access_log=self._access_log,
            outermost=lambda app: LoadShedding(app, self._connections, self._memory, settings.root_path),
        )

    @contextlib.asynccontextmanager
    async def _http_server(self) -> AsyncIterator[None]:
        """Answer HTTP requests inside this block."""
        turns = ReadLimiter()
        protocol = partial(
            BoundedReadProtocol,
            on_http=self._on_rejected_connection,
            connections=self._connections,
            read_limiter=turns,
            body_limiter=ReadLimiter(MAX_BODY_READS),
            tenant_of=tenant_finder(self._settings.api_keys),
        )
        try:
            http = self._http = HttpServer(
                self._in_flight,
                protocol,
                self._settings,
                read_limiter=turns,
                flush_s=self._flush_s,
                accepts_at_once=not self._inherited.has_predecessor,  # which answers until this process is ready
            )
        except CertificateError as error:
            raise StartError(str(error)) from None
        task = asyncio.create_task(http.serve(sockets=[self._listener]))
        try:
            yield
        finally:
            http.should_exit = True
            await task

    def _on_rejected_connection(self, route: str, method: str, status: int) -> None:
        self._metrics.http(route, method, status)
        self._access_log.connection_rejected(status)

    async def _load(self, engine: LaunchedEngine) -> None:
        """Load the text frontend while the engine process imports its modules, then start the engine.

        When the engine is ready, the server is.
        """
        self._report.line(f"smoe {VERSION} loads {described(self._model_dir)}")
        if not self._settings.api_keys and not is_loopback(self._listener) and not is_unix(self._listener):
            self._report.line(f"WARNING: anyone who reaches {self._settings.host} can use this server; set --api-key")
        if self._http is not None and self._http.certificate_fault:
            self._report.line(f"WARNING: {self._http.certificate_fault}")
        try:
            await self._client.adopt(engine)
            await self._sandbox.start()
            self._texts = await self._shutdown.unless_requested(
                load_texts(self._settings, self._model_dir, self._sandbox)
            )
        except OSError as error:
            self._shutdown.fail(process_error(error), 1)
            return
        except (TokenizerError, StartError) as error:
            self._shutdown.fail(str(error), 2)
            return
        if self._texts is None:  # a signal came first
            return
        vocabulary = self._texts.tokenizer.vocabulary()
        await self._client.start(self._engine_config, vocabulary)

    async def _prepare_grammars(self, texts: TextFrontend) -> None:
        """Build what checks of grammars need, so that the first request does not wait for it."""
        with contextlib.suppress(SandboxError):  # the first check tries again
            await texts.grammars.prepare()

    def _on_status(self, status: EngineStatus) -> None:
        self._metrics.engine_status(status)
        if status.phase == "dead":
            self._shutdown.fail(status.message or "the engine is gone", status.exit_code)
        elif status.phase == "loading":
            self._report.progress(status)
        elif self._client.ready is not None:
            if self._state.texts is None:
                self._on_ready(self._client.ready)
            self._state.date_adapters(int(time.time()))  # a restarted engine may have others

    def _on_ready(self, ready: Ready) -> None:
        assert self._texts is not None
        self._report.end_progress(is_complete=True)
        try:
            self._texts.tokenizer.check_fits(ready.vocab_size)
        except TokenizerError as error:
            self._shutdown.fail(f"{self._model_dir}: {error}", 2)
            return
        self._state.date_adapters(self._state.created_s)
        apply_memory_share(ready.memory_share, self._settings, self._request_memory, self._state)
        texts = self._state.texts = self._texts.for_engine(ready)
        self._ahead = asyncio.create_task(self._prepare_grammars(texts))
        if self._batches is not None:
            self._batch_runs = asyncio.create_task(self._run_batches(self._batches))
        if self._memory is not None:
            self._memory.settle(held_bytes(ready))
        gc.freeze()  # the tokenizer and the modules stay: garbage collections need not scan them
        seconds = time.monotonic() - self._started_s
        self._metrics.engine_ready(
            ready,
            version=VERSION,
            enable_prefix_caching=not self._settings.no_enable_prefix_caching,
            startup_s=seconds,
        )
        url = url_of(self._listener, scheme="http" if self._settings.ssl_certfile is None else "https")
        takes_tools = texts.chat_template.takes_tools
        for line in lines_when_ready(
            ready, self._settings, takes_tools=takes_tools, url=url, model_id=self._names[0], seconds=seconds
        ):
            self._report.line(line)
        assert self._http is not None
        self._http.accept()
        if not self._inherited.report_ready():
            self._on_predecessor_gone()
