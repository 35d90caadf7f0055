"""python -m tests.measure.scale.ranks_against_threads CHECKPOINT [--ranks N] [--rounds N]

Compare the engine of N ranks of one thread with that of one process of N threads, in turns and without a server: decode
steps of 1 and 16 requests and a prefill of 512 tokens, in tokens per second. Other work on the machine slows ranks more
than threads, because ranks have equal parts of each product and wait for the one that lost its core. So the ratio of
the best rounds is printed beside the median of the rounds' ratios. For a machine without other load and with N cores;
about a minute a round.
"""

import argparse
import subprocess
import sys
from statistics import median

import msgspec

from engine.bench.steps import StepBench
from engine.config import EngineConfig
from engine.engine import Engine
from model.bench.roofline import RooflineProbe

BATCHES, PREFILL_LEN = (1, 16), 512
CONTEXT = 64
NAMES = (*(f"decode of {batch}" for batch in BATCHES), f"prefill of {PREFILL_LEN}")


def speeds(checkpoint: str, num_ranks: int, num_threads: int) -> list[float]:
    """Return the tokens per second of each of NAMES, of an engine in this process."""
    config = EngineConfig(
        model=checkpoint,
        threads=num_threads,
        tensor_parallel_size=num_ranks,
        enable_prefix_caching=False,
        max_model_len=1024,
        speculation="off",
    )
    engine = Engine.load(config)
    loaded = engine.loaded
    bench = StepBench(engine, RooflineProbe(loaded.runner.model.ops, loaded.device), "bfloat16")
    steps = [*bench.decode(BATCHES, CONTEXT), *bench.prefill([PREFILL_LEN])]
    if loaded.ranks is not None:
        loaded.ranks.close()
    return [step.tokens_per_s for step in steps]


def speeds_of_a_process(checkpoint: str, num_ranks: int, num_threads: int) -> list[float]:
    engine = f"{num_ranks},{num_threads}"
    command = [sys.executable, "-m", "tests.measure.scale.ranks_against_threads", checkpoint, "--engine", engine]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(result.stdout, type=list[float])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # ranks and threads, in a process of its own
    options = parser.parse_args()
    if options.engine:
        num_ranks, num_threads = map(int, options.engine.split(","))
        sys.stdout.buffer.write(msgspec.json.encode(speeds(options.checkpoint, num_ranks, num_threads)))
        return
    rounds = []
    for _ in range(options.rounds):
        threads = speeds_of_a_process(options.checkpoint, 1, options.ranks)
        ranks = speeds_of_a_process(options.checkpoint, options.ranks, 1)
        rounds.append((threads, ranks))
    for index, name in enumerate(NAMES):
        of_threads, of_ranks = ([pair[kind][index] for pair in rounds] for kind in (0, 1))
        ratios = [ranks / threads for threads, ranks in zip(of_threads, of_ranks, strict=True)]
        best = max(of_ranks) / max(of_threads)
        sys.stdout.write(
            f"{name:<16} threads {max(of_threads):7.1f} ranks {max(of_ranks):7.1f} best / best {best:.2f} "
            f"median ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n"
        )


if __name__ == "__main__":
    main()
