"""Host time of real decode steps: all of a step that is not a call of the C++ library.

`python -m tests.measure.step_host_time [--threads N] [--preset NAME] [--speculation auto|off] [--penalties]
[REQUESTS ...]`: a native engine with random weights decodes. The weights of bench-400m, the default, are larger than
the caches, so that Python finds its code and data where a served model leaves them. Prints for each number of running
requests the microseconds of each part of a step (first quartile and median over the steps), and of all of them. The
frame of each step is sent through a socket pair, as the engine process does.
"""

import argparse
import gc
import socket
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

from engine.config import EngineConfig
from engine.engine import Engine
from engine.garbage_collection import make_full_collections_rare
from engine.messages import FrameReader, FromEngine
from engine.process import Channel
from engine.startup.loading import load_random
from engine.step_frames import step_messages
from engine.types import Request, SamplingParams
from model.bench.shapes import PRESETS
from model.ops.native.ops import NativeOps

NUM_PROMPT, WARM_UP_STEPS, NUM_STEPS = 64, 20, 200
LIBRARY = "library"


class Clock:
    """Seconds of each part of the present step, and of all steps before."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget all steps."""
        self._present: defaultdict[str, float] = defaultdict(float)
        self._steps: list[dict[str, float]] = []

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call`, whose time without that of the library's calls counts as part `name`."""

        def timed(*args: Any, **options: Any) -> Any:
            library_s, start = self._present[LIBRARY], time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                within_s = self._present[LIBRARY] - library_s
                self._present[name] += time.perf_counter() - start - within_s * (name != LIBRARY)

        return timed

    def end_step(self) -> None:
        """Begin the next step."""
        self._steps.append(dict(self._present))
        self._present.clear()

    def microseconds(self, name: str) -> tuple[float, float]:
        """Return the first quartile and the median of a part."""
        seconds = [step.get(name, 0.0) for step in self._steps[WARM_UP_STEPS:]]
        first, middle, _ = statistics.quantiles(seconds, n=4)
        return 1e6 * first, 1e6 * middle


class TimedLibrary:
    """Functions of the library; the time of the network and of sampling is not Python's."""

    def __init__(self, call: Any, clock: Clock) -> None:
        self._call = call
        self.smoe_forward = clock.timed(LIBRARY, call.smoe_forward)
        self.smoe_sample = clock.timed(LIBRARY, call.smoe_sample)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def measured_engine(config: EngineConfig, preset: str, clock: Clock) -> Engine:
    """Return an engine with random weights whose parts report to the clock."""
    engine = Engine(config, load_random(config, PRESETS[cast(Any, preset)]))
    runner, scheduler = cast(Any, engine.loaded.runner), cast(Any, engine.scheduler)
    native = cast(Any, engine.loaded.runner.model.ops)
    assert isinstance(native, NativeOps)
    native._call = TimedLibrary(native._call, clock)
    for owner, method, name in (
        (engine, "step", "step"),
        (scheduler, "plan", "plan"),
        (runner._batches, "build", "batch"),
        (runner.model, "forward", "network"),
        (runner.sampler, "prepare", "sampling"),
        (runner.sampler, "launch", "sampling"),
        (runner, "finish", "results"),
        (scheduler, "apply", "apply"),
    ):
        setattr(owner, method, clock.timed(name, getattr(owner, method)))
    return engine


def measure(engine: Engine, clock: Clock, num_requests: int, **more: Any) -> None:
    """Decode NUM_STEPS steps of `num_requests` requests, and end them. `more`: fields of their SamplingParams."""
    mine, peer = socket.socketpair()
    channel, reader = Channel(mine), FrameReader[FromEngine](FromEngine)

    def send_and_receive(output: Any) -> None:
        for message in step_messages(output, []):
            channel.send(message)
        channel.receive(0.0)

    send = clock.timed("send", send_and_receive)
    for index in range(num_requests):
        max_tokens = WARM_UP_STEPS + NUM_STEPS + 64
        params = SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=index, ignore_eos=True, **more)
        engine.add(Request(index, [5 + index, *range(5, 5 + NUM_PROMPT)], params))
    while (stats := engine.step().stats).num_prefill_tokens or stats.num_running < num_requests:
        pass
    gc.collect()
    gc.freeze()
    make_full_collections_rare()
    clock.restart()
    for _ in range(WARM_UP_STEPS + NUM_STEPS):
        send(engine.step())
        reader.feed(peer.recv(1 << 20))
        clock.end_step()
    for index in range(num_requests):
        engine.abort(index)


def report(clock: Clock, num_requests: int) -> None:
    """Print the parts of a step; `other` is what engine.step() does between them."""
    names = ("plan", "batch", "network", "sampling", "results", "apply", "send")
    parts = {name: clock.microseconds(name) for name in names}
    step, library = clock.microseconds("step"), clock.microseconds(LIBRARY)
    other = [step[i] - sum(parts[name][i] for name in names if name != "send") for i in (0, 1)]
    parts["other"] = other[0], other[1]
    listed = "  ".join(f"{name} {first:.0f}, {middle:.0f}" for name, (first, middle) in parts.items())
    total = [step[i] + parts["send"][i] for i in (0, 1)]
    sys.stdout.write(
        f"{num_requests:4d} running: {listed}; all {total[0]:.0f}, {total[1]:.0f} us, "
        f"{total[0] / num_requests:.2f} each; library {library[0]:.0f}, {library[1]:.0f} us\n"
    )
    sys.stdout.flush()


def main() -> None:
    """Measure each number of requests in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--preset", default="bench-400m", choices=list(PRESETS))
    parser.add_argument("--speculation", default="off", choices=["auto", "off"])
    parser.add_argument("--penalties", action="store_true")
    parser.add_argument("requests", type=int, nargs="*", default=[1, 4, 16])
    options = parser.parse_args()
    config = EngineConfig(
        model="",
        backend="native",
        threads=options.threads,
        kv_cache_memory_bytes=1 << 28,
        enable_prefix_caching=True,
        speculation=options.speculation,
    )
    clock = Clock()
    engine = measured_engine(config, options.preset, clock)
    for num_requests in options.requests:
        measure(engine, clock, num_requests, presence_penalty=0.5 * options.penalties)
        report(clock, num_requests)


if __name__ == "__main__":
    main()
