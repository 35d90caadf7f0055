"""python -m tests.measure.capacity_plan [--shape bench-400m|tiny] [--seconds N] [--quantization int8] [--threads N]

Compare what `smoe plan --rate` predicts with what a server does, at four rates: first tokens and gaps (p50 and p99)
and tokens per second. Both get the same arrivals and lengths. The steps are measured by `smoe bench engine` on the same
checkpoint, which has random weights. For a machine without other load; about four minutes.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.capacity.host_resources import available_bytes
from engine.capacity.memory_plan import plan_memory
from engine.capacity.new_scheduler import make_scheduler
from engine.config import EngineConfig
from engine.planning.replicas import percentile
from engine.planning.step_time_model import StepTimeModel, read_steps
from engine.planning.virtual_engine import Arrival, VirtualEngine
from server.bench.workload import poisson_arrivals
from tests.support.checkpoints import Shape, save_random_checkpoint
from tests.support.mistral_tokenizers import V1
from tests.support.running import start_server

VOCAB_SIZE = 32000
SHAPES = {
    "bench-400m": Shape(1024, 8, 16, 4, 64, 1792, vocab_size=VOCAB_SIZE),
    "tiny": Shape(vocab_size=VOCAB_SIZE),
}
BUDGET = 128  # of tokens in a step
PROMPT_TOKENS, OUTPUT_TOKENS = (32, 256), (16, 64)
SHARES = (0.3, 0.5, 0.7, 0.85)  # of the load at which the steps' times leave no idle moment
FLAGS = ["--max-num-batched-tokens", str(BUDGET), "--max-num-seqs", "32", "--max-model-len", "1024"]


def smoe(*arguments: str) -> Any:
    """Run a command of smoe that prints JSON."""
    result = subprocess.run([sys.executable, "-m", "server", *arguments], stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def arrivals_of(rate: float, seconds: float) -> list[Arrival]:
    rng = random.Random(3)
    times = poisson_arrivals(rate, random.Random(4))
    return [
        Arrival(next(times), rng.randint(*PROMPT_TOKENS), rng.randint(*OUTPUT_TOKENS))
        for _ in range(max(20, round(rate * seconds)))
    ]


def full_rate(model: StepTimeModel) -> float:
    """Return the requests per second of steps that are always full: 32 decoding rows beside chunks of prompts."""
    rows_per_request = sum(PROMPT_TOKENS) / 2 + sum(OUTPUT_TOKENS) / 2
    return BUDGET / model.rows_s(BUDGET) / rows_per_request


def predicted(config: EngineConfig, model: StepTimeModel, arrivals: Sequence[Arrival]) -> dict[str, float]:
    plan = plan_memory(config, available_bytes())
    assert plan.limits is not None
    scheduler = make_scheduler(config, plan.model, replace(plan.limits, max_num_batched_tokens=BUDGET))
    timeline = VirtualEngine(scheduler, model.step_s).run(arrivals, max_ttft_s=1e9)
    ttft_s, gaps_s = sorted(timeline.ttft_s), sorted(timeline.gaps_s)
    return figures(ttft_s, gaps_s, timeline.tokens_per_s)


def figures(ttft_s: Sequence[float], gaps_s: Sequence[float], tokens_per_s: float) -> dict[str, float]:
    return {
        "first token p50": percentile(ttft_s, 50),
        "first token p99": percentile(ttft_s, 99),
        "gap p50": percentile(gaps_s, 50),
        "gap p99": percentile(gaps_s, 99),
        "tokens/s": tokens_per_s,
    }


def measured(url: str, arrivals: Sequence[Arrival], folder: Path) -> dict[str, float]:
    trace = folder / "trace.jsonl"
    lines = (
        {"arrival_s": a.due_s, "prompt_tokens": a.num_prompt_tokens, "output_tokens": a.num_output_tokens}
        for a in arrivals
    )
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [run] = smoe("bench", "serve", url, "--trace", str(trace), "--vocab-size", str(VOCAB_SIZE), "--json")["runs"]
    assert not run["errors"], run["error_messages"]
    ttft_s, gap_s = run["ttft_s"], run["gap_s"]
    return {
        "first token p50": ttft_s["p50"],
        "first token p99": ttft_s["p99"],
        "gap p50": gap_s["p50"],
        "gap p99": gap_s["p99"],
        "tokens/s": run["output_tokens_per_s"],
    }


def rows(rate: float, expected: dict[str, float], found: dict[str, float]) -> Iterator[str]:
    for name, value in expected.items():
        error = value / found[name] - 1
        yield f"{rate:8.2f}/s  {name:<16}{value:12.4f}{found[name]:12.4f}{error:+10.1%}"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="bench-400m")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each rate")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--threads", type=int, default=1, help="of the engine; the client needs a core, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.model").symlink_to(V1)
        save_random_checkpoint(SHAPES[options.shape], folder)
        chosen = ["--quantization", options.quantization, "--threads", str(options.threads)]
        lists = ["--batches", "1,2,4,8,16,32", "--contexts", "128,512", "--prefills", f"64,{BUDGET}"]
        model = StepTimeModel(read_steps(smoe("bench", "engine", str(folder), *chosen, *lists, "--json")))
        config = EngineConfig(
            model=str(folder), max_num_seqs=32, max_model_len=1024, enable_prefix_caching=False,
            quantization=options.quantization,
        )  # fmt: skip
        with start_server(*chosen, *FLAGS, "--no-enable-prefix-caching", model=str(folder)) as server:
            print(f"{'rate':>10}  {'':<16}{'predicted':>12}{'measured':>12}{'error':>10}")  # noqa: T201
            for share in SHARES:
                rate = share * full_rate(model)
                arrivals = arrivals_of(rate, options.seconds)
                expected = predicted(config, model, arrivals)
                for line in rows(rate, expected, measured(server.url, arrivals, folder)):
                    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
