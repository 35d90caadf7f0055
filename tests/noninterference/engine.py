"""The product's engine and its client in one process: its loop runs on a greenlet, which yields where it would wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import greenlet

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import PeerClosedError
from engine.heartbeat import Heartbeat
from engine.messages import FrameReader, FromEngine, PrefillStarted, ToEngine, encode_frame
from engine.process import Channel, EngineProcess
from engine.startup.assembly import LoadedModel
from engine.startup.description import ready_message
from engine.startup.loading import load
from engine.types import Vocabulary
from server.engine_client.client import EngineClient
from server.engine_client.expert_queries import ExpertQueries
from server.engine_client.status import EngineStatus


class Link:
    """Replaces the engine's supervisor and the socket pair. Messages cross it as frames, as between processes."""

    def __init__(self, client: EngineClient, loaded: LoadedModel, config: EngineConfig) -> None:
        self.ready = ready_message(config, loaded)
        self.status = EngineStatus("ready")
        self.is_serving, self.pid = True, None
        self.arrived = asyncio.Event()  # messages for the engine
        self.idle = asyncio.Event()  # the engine has no work and no messages
        self._client = client
        self._to_engine: FrameReader[ToEngine] = FrameReader(ToEngine)
        self._to_server: FrameReader[FromEngine] = FrameReader(FromEngine)
        self._sent: list[bytes] = []

    def send(self, message: ToEngine) -> None:
        self._sent.append(encode_frame(message))
        self.arrived.set()
        self.idle.clear()

    def take(self) -> list[ToEngine]:
        sent, self._sent = b"".join(self._sent), []
        self.arrived.clear()
        return self._to_engine.feed(sent)

    def deliver(self, message: FromEngine) -> None:
        for received in self._to_server.feed(encode_frame(message)):
            self._client._receive(received)

    def end(self, reason: str) -> None:
        """End all requests, and refuse new ones."""
        self.is_serving, self.status = False, EngineStatus("dead", message=reason)
        self._client._on_end(reason)


class GreenletChannel:
    """The engine's end of a link, with the methods of engine.process.Channel."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def send(self, message: FromEngine) -> None:
        self._link.deliver(message)

    def receive(self, timeout_s: float) -> list[ToEngine]:
        """Let the event loop run, then return what has arrived."""
        parent = greenlet.getcurrent().parent
        assert parent is not None
        parent.switch(timeout_s)
        return self._link.take()


class InProcessEngine:
    """A loaded model and the client of an engine around it."""

    def __init__(self, model: Path, vocabulary: Vocabulary, **config: Any) -> None:
        self.config = EngineConfig(model=str(model), **config)
        self.client = EngineClient()
        self._loaded = load(self.config, lambda phase, done, total: None)
        self._vocabulary = vocabulary
        self._link = Link(self.client, self._loaded, self.config)
        self.client._supervisor = cast(Any, self._link)
        self.client._expert_queries = ExpertQueries(self._link.send)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """Run an engine with an empty queue and an empty prefix cache within the block, which must end without work."""
        engine = Engine(self.config, self._loaded, self._vocabulary)
        process = EngineProcess(cast(Channel, GreenletChannel(self._link)), Heartbeat())
        engine.on_prefill_start = lambda request_ids: process.channel.send(PrefillStarted(request_ids))
        loop = greenlet.greenlet(lambda: process._serve(engine, ()))
        pump = asyncio.create_task(self._pump(loop))
        try:
            yield engine
            idle = asyncio.create_task(self._link.idle.wait())
            await asyncio.wait({idle, pump}, return_when=asyncio.FIRST_COMPLETED)
            has_ended = not idle.done()
            idle.cancel()
            assert not has_ended, "the engine's loop has ended"
            engine.scheduler.check_integrity()
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, loop: greenlet.greenlet) -> None:
        """Continue the engine's loop in each turn of the event loop; when it is idle, once something has arrived.

        An error of the loop ends all requests, as that of an engine's process does: the server waits for them."""
        try:
            while True:
                timeout_s = loop.switch()
                await asyncio.sleep(0)
                if timeout_s and not self._link.arrived.is_set():
                    self._link.idle.set()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._link.arrived.wait(), timeout_s)
        except Exception:
            self._link.end("the engine's loop has failed")
            raise
        finally:
            with contextlib.suppress(PeerClosedError):
                loop.throw(PeerClosedError)
