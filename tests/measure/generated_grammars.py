"""python -m tests.measure.generated_grammars [--grammars N] [--templates N] [--seed S] [--json FILE]

Send generated schemas, expressions, grammars and chat templates through the real sandbox, as the server does, and build
the accepted grammars as the engine does. Prints a JSON object: CPU time and memory of each kind of process, the lag of
the event loop meanwhile, and what became of the inputs. Exit code 1 if a job took more than 1 s of CPU time or 256 MiB,
or the 99th percentile of the lag is 50 ms or more.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from engine.errors import GrammarError
from engine.grammars.matcher import GrammarCompiler
from engine.types import Vocabulary
from server.chat.rendering import load_template, render_text_of
from server.chat.turns import Turn
from server.errors import ApiError
from server.sandbox.job import JobUse
from server.sandbox.pool import SandboxPool
from server.schemas import CompletionRequest, validate
from server.structured_output.grammar_checker import GrammarChecker
from server.tokenizer.tokenizer import Tokenizer, TokenizerError
from tests.support.generated.hostile_schemas import hostile_constraint
from tests.support.generated.hostile_templates import hostile_template
from tests.support.servers.serving import tokenizer

MAX_CPU_S, MAX_BYTES, MAX_LAG_S = 1.0, 256 << 20, 0.05
PROBE_S = 0.005
NUM_AT_ONCE = 8
MAX_BODY_CHARS = 1_000_000
LIGHT, HEAVY = 20, 20_000  # characters of a conversation

_engine_compiler: GrammarCompiler | None = None


def start_engine_side(vocabulary: Vocabulary, vocab_size: int, eos_ids: list[int]) -> None:
    """Prepare a process that builds grammars as the engine does."""
    global _engine_compiler
    _engine_compiler = GrammarCompiler(vocabulary, vocab_size, eos_ids)
    _engine_compiler.warm_up()


def build_in_engine(grammar: str) -> tuple[float, int, bool]:
    """Build a grammar. Returns CPU seconds, the growth of the process' peak in bytes, and whether it could be built."""
    assert _engine_compiler is not None
    start_s, start_bytes = time.process_time(), peak_bytes()
    try:
        _engine_compiler.build(grammar)
    except GrammarError:
        return time.process_time() - start_s, peak_bytes() - start_bytes, False
    return time.process_time() - start_s, peak_bytes() - start_bytes, True


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Measurement:
    """One run over generated inputs."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pool = SandboxPool(on_use=self._on_use)
        self._checker = GrammarChecker(tokenizer, self._pool)
        self._base_bytes = 0  # of a worker before its first job
        self._lags_s: list[float] = []
        self.uses: list[JobUse] = []
        self.engine_s: list[float] = [0.0]
        self.engine_bytes = 0
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []

    async def run(self, constraints: Sequence[dict[str, Any]], templates: Sequence[str]) -> dict[str, Any]:
        """Send everything through and return the figures."""
        await self._pool.start()
        await self._checker.prepare()
        self._base_bytes = rss_bytes(self._pool.pids[0])
        vocabulary, tokenizer = self._tokenizer.vocabulary(), self._tokenizer
        context = multiprocessing.get_context("spawn")
        arguments = vocabulary, tokenizer.vocab_size, list(tokenizer.eos_ids)
        with ProcessPoolExecutor(1, context, start_engine_side, arguments) as engine:
            engine.submit(peak_bytes).result()  # started; that is no part of the measurement
            start_bytes, start_s = peak_bytes(), time.monotonic()
            probe = asyncio.create_task(self._probe_lag())
            turns = asyncio.Semaphore(NUM_AT_ONCE)
            grammars = [self._grammar(fields, turns, engine) for fields in constraints]
            await asyncio.gather(self._templates(templates), *grammars)
        probe.cancel()
        self._pool.close()
        return self._figures(time.monotonic() - start_s, peak_bytes() - start_bytes)

    async def _grammar(self, fields: dict[str, Any], turns: asyncio.Semaphore, engine: ProcessPoolExecutor) -> None:
        async with turns:
            kind = next(iter(fields["structured_outputs"]))
            try:
                request = validate(CompletionRequest, {"model": "m", "prompt": "x", **fields})
                compiled = await self._checker.compile(request)
            except ApiError as refusal:
                self.outcomes[f"{kind}: {refusal.status}"] += 1
                return
            except Exception as error:  # noqa: BLE001 (the run goes on, and names it)
                self.faults.append(f"{kind}: {type(error).__name__}: {error}")
                return
            assert compiled is not None
            self.outcomes[f"{kind}: accepted"] += 1
            loop = asyncio.get_running_loop()
            seconds, growth, is_built = await loop.run_in_executor(engine, build_in_engine, compiled.grammar)
            self.engine_s.append(seconds)
            self.engine_bytes = max(self.engine_bytes, growth)
            if not is_built:
                self.faults.append(f"{kind}: accepted, but the engine cannot build it")

    async def _templates(self, sources: Sequence[str]) -> None:
        for source in sources:
            try:
                template = await load_template(source, self._tokenizer, self._pool)
            except TokenizerError:
                self.outcomes["template: refused at the start"] += 1
                continue
            for num_chars in (LIGHT, HEAVY):
                conversation = template.prepare([Turn("user", "x" * num_chars)])
                try:
                    heavy = num_chars == HEAVY
                    await render_text_of(template, conversation, self._pool, heavy=heavy, tenant=0)
                    self.outcomes["template: rendered"] += 1
                except ApiError as refusal:
                    self.outcomes[f"template: {refusal.status}"] += 1

    async def _probe_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + PROBE_S
            await asyncio.sleep(PROBE_S)
            self._lags_s.append(loop.time() - due_s)

    def _on_use(self, use: JobUse) -> None:
        self.uses.append(use)

    def _figures(self, seconds: float, api_bytes: int) -> dict[str, Any]:
        lags = sorted(self._lags_s)
        slowest = sorted(self.uses, key=lambda use: -use.cpu_s)[:5]
        ends = Counter(f"{use.function.rpartition(':')[2]}: {use.outcome}" for use in self.uses)
        return {
            "seconds": round(seconds, 1),
            "sandbox_jobs": len(self.uses),
            "sandbox_ends": dict(sorted(ends.items())),
            "sandbox_max_cpu_s": round(max((use.cpu_s for use in self.uses), default=0.0), 3),
            "sandbox_max_growth_mib": (max((u.max_rss_bytes for u in self.uses), default=0) - self._base_bytes) >> 20,
            "sandbox_slowest": [f"{use.function}: {use.outcome}, {use.cpu_s:.2f} s" for use in slowest],
            "engine_builds": len(self.engine_s) - 1,
            "engine_max_cpu_s": round(max(self.engine_s), 3),
            "engine_max_growth_mib": self.engine_bytes >> 20,
            "api_growth_mib": api_bytes >> 20,
            "loop_lag_p50_ms": round(1000 * lags[len(lags) // 2], 2),
            "loop_lag_p99_ms": round(1000 * lags[int(0.99 * (len(lags) - 1))], 2),
            "loop_lag_max_ms": round(1000 * lags[-1], 2),
            "outcomes": dict(sorted(self.outcomes.items())),
            "faults": self.faults[:20],
        }


def generated_constraints(count: int, seed: int) -> list[dict[str, Any]]:
    """Draw what fits into a request's body."""
    drawn = (hostile_constraint(random.Random(f"{seed} {i}")) for i in itertools.count())
    return list(itertools.islice((fields for fields in drawn if len(json.dumps(fields)) < MAX_BODY_CHARS), count))


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def is_within_bounds(figures: dict[str, Any]) -> bool:
    seconds = max(figures["sandbox_max_cpu_s"], figures["engine_max_cpu_s"])
    growth = max(figures[f"{name}_growth_mib"] for name in ("sandbox_max", "engine_max", "api"))
    is_fast = figures["loop_lag_p99_ms"] < 1000 * MAX_LAG_S
    return seconds <= MAX_CPU_S and growth <= MAX_BYTES >> 20 and is_fast and not figures["faults"]


def main() -> int:
    """Run the measurement and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--grammars", type=int, default=300)
    parser.add_argument("--templates", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    measurement = Measurement(tokenizer())  # of Mixtral: 32,000 tokens
    constraints = generated_constraints(options.grammars, options.seed)
    templates = [hostile_template(random.Random(f"template {options.seed} {i}")) for i in range(options.templates)]
    figures = uvloop.run(measurement.run(constraints, templates))
    figures["within_bounds"] = is_within_bounds(figures)
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 0 if figures["within_bounds"] else 1


if __name__ == "__main__":
    sys.exit(main())
