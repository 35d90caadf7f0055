"""Print the start of the server: about 15 lines, the last one a command that sends a first request."""

import shlex
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Literal, Protocol, cast

from engine.capacity.machine.host_resources import memory_limit_bytes
from engine.capacity.sizing import example_lengths, requests_that_fit, room_in_words
from engine.messages import Ready
from server.engine_client.status import EngineStatus
from server.fairness.budgets import budgets, shortage, total_bytes
from server.observability.log_stream import json_line
from server.settings.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

COUNTED_STAGES = ("adapters", "GPU kernels", "CUDA graphs")  # report numbers instead of bytes
NO_TOOLS = "the model has none of its own; coding agents and others that send tools need --tool-emulation"
SIGHUP_IGNORED = "SIGHUP is ignored: the ranks of other hosts cannot compute for two processes"
PROGRESS_INTERVAL_S = 1.0  # a model that loads faster needs no progress lines


class Stream(Protocol):
    """Target of the lines; in the server NonBlockingStream of server/observability/log_stream.py."""

    def write(self, text: str, /) -> int: ...
    def isatty(self) -> bool: ...


class StartupReport:
    """Writes the lines of the start to one stream: the first, at most 10 of progress per stage, and `ready_lines`."""

    def __init__(
        self, stream: Stream, clock: Callable[[], float] = time.monotonic, style: Literal["text", "json"] = "text"
    ) -> None:
        """`style`: that of the log, --log-format."""
        self._stream = stream
        self._is_json = style == "json"
        self._clock = clock
        self._stage = ""  # in progress, with its size and its last line
        self._total_bytes = 0
        self._line_at_s = clock()
        self._tenths_reported = 0
        self._bar: tuple[Progress, TaskID] | None = None

    def line(self, text: str) -> None:
        """Write one line. `text` has no line breaks."""
        self._stream.write(f"{json_line(text) if self._is_json else text}\n")

    def progress(self, status: EngineStatus) -> None:
        """Show how much of the weights is loaded: a bar on a terminal; elsewhere a line per 10 %, if it takes long."""
        if status.phase != "loading":
            return
        if self._stream.isatty() and not self._is_json:
            self._draw(status)
            return
        if status.stage != self._stage:
            self.end_progress(is_complete=True)
            self._stage, self._total_bytes, self._line_at_s = status.stage, status.total_bytes, self._clock()
        if not status.total_bytes:
            return
        tenths = 10 * status.loaded_bytes // status.total_bytes
        if self._tenths_reported < tenths < 10 and self._clock() - self._line_at_s >= PROGRESS_INTERVAL_S:
            self._progress_line(10 * tenths)
            self._tenths_reported = tenths
            self._line_at_s = self._clock()

    def end_progress(self, *, is_complete: bool) -> None:
        """Remove the bar; elsewhere end a stage that had lines, if it is complete, with one of 100 %."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None
        if self._tenths_reported and is_complete:
            self._progress_line(100)
        self._stage, self._tenths_reported = "", 0

    def _progress_line(self, percent: int) -> None:
        total = "" if self._stage in COUNTED_STAGES else f" of {size(self._total_bytes)}"
        self.line(f"{self._stage} {percent}%{total}")

    def _draw(self, status: EngineStatus) -> None:
        if not status.total_bytes:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress

            progress = Progress(console=Console(file=cast(IO[str], self._stream)), transient=True)
            progress.start()
            self._bar = progress, progress.add_task(status.stage, total=status.total_bytes)
        progress, task = self._bar
        progress.update(task, completed=status.loaded_bytes, total=status.total_bytes, description=status.stage)


def held_bytes(ready: Ready) -> int:
    """Return the main memory that weights and KV cache hold: not that of a GPU, nor pages that the system may drop."""
    return ready.weight_bytes - ready.mapped_bytes + ready.kv_cache_bytes if ready.device == "cpu" else 0


def lines_when_ready(
    ready: Ready, settings: Settings, *, takes_tools: bool, url: str, model_id: str, seconds: float
) -> list[str]:
    """Return warnings, also of memory that may not suffice for requests, and the lines of ready_lines().

    `takes_tools`: whether the model's chat format has tools.
    """
    parts = budgets(settings, ready.memory_share)
    too_little = shortage(parts, held_bytes(ready), memory_limit_bytes())
    warnings = [*ready.warnings, too_little] if too_little else ready.warnings
    needs_key = bool(settings.api_keys)
    reduced = " (reduced to fit the memory limit)" if ready.memory_share < 1.0 else ""
    room = f"{size(total_bytes(parts))}{reduced}"
    lines = ready_lines(
        ready,
        max_num_seqs=settings.max_num_seqs,
        budgets=room,
        url=url,
        model_id=model_id,
        needs_key=needs_key,
        seconds=seconds,
        needs_emulation=ready.generates and not takes_tools and not settings.tool_emulation,
    )
    return [*(f"WARNING: {warning}" for warning in warnings), *lines]


def ready_lines(
    ready: Ready,
    *,
    max_num_seqs: int,
    budgets: str,
    url: str,
    model_id: str,
    needs_key: bool,
    seconds: float,
    needs_emulation: bool = False,
) -> list[str]:
    """Return aligned lines about model, memory, capacity, requests and URL, and a command that sends a request.

    `budgets`: size of the memory that requests may use besides the KV cache. `seconds`: duration of the whole start.
    `needs_emulation`: say which flag clients need that send tools.
    """
    of_each = (
        f"; {ready.experts_per_token} of {ready.num_experts} experts compute each token" if ready.num_experts else ""
    )
    key = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
    kind = " (mapped)" if ready.mapped_bytes else ""
    if ready.expert_slots:
        count = ready.num_layers * ready.num_experts
        kind = f" with {ready.expert_slots} of {count} experts (others are read when needed)"
    path, rest = "/v1/completions", '"prompt": "It was", "max_tokens": 48, "stream": true'
    if not ready.generates:
        path, rest = "/v1/embeddings", '"input": "It was"'
    browser, curl_url = "open it in a browser, or ", url
    if url.startswith("unix:"):
        browser, curl_url = "", f"--unix-socket {shlex.quote(url.removeprefix('unix:'))} http://localhost"
    return [
        f"model     {model_id}: {ready.num_parameters:,} parameters in {_kind(ready)}{of_each}; "
        f"{ready.device}, {ready.backend} backend",
        f"memory    weights {size(ready.weight_bytes)}{kind}, KV cache {size(ready.kv_cache_bytes)}",
        f"capacity  room for {_capacity(ready, max_num_seqs)} tokens at a time, the longest that a request may have; "
        f"the KV cache holds {ready.num_blocks * ready.block_size:,} tokens{_window(ready)}",
        f"requests  may take up to {budgets} more memory while they run; `smoe doctor` lists what for",
        *([f"tools     {NO_TOOLS}"] if needs_emulation else []),
        f"serving   {model_id} at {url} after {seconds:.1f} s; {browser}send the request below; "
        "Ctrl-C ends it after the running requests",
        f"curl -N {curl_url}{path}{key} -H 'Content-Type: application/json' -d '{{\"model\": \"{model_id}\", {rest}}}'",
    ]


def size(num_bytes: int) -> str:
    """Format a size: 1536 gives "1.5 KiB"."""
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.4g} {unit}"
        amount /= 1024
    return f"{amount:.4g} GiB"


def _kind(ready: Ready) -> str:
    return ready.dtype if ready.quantization == "none" else f"{ready.quantization} and {ready.dtype}"


def _capacity(ready: Ready, max_num_seqs: int) -> str:
    """Return how many requests of two lengths fit; of the longest only, if as many of the other do."""
    rooms = {
        length: requests_that_fit(ready.num_blocks, length, ready.block_size, ready.window, max_num_seqs)
        for length in example_lengths(ready.max_model_len)[-2:]
    }
    longest = rooms[ready.max_model_len]
    return " or ".join(
        room_in_words(number, length)
        for length, number in rooms.items()
        if number != longest or length == ready.max_model_len
    )


def _window(ready: Ready) -> str:
    return "" if ready.window is None else f", of each request its last {ready.window:,} only"
