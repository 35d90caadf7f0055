"""Run random schedules: python -m tests.simulator [--seed N | --seeds N] [--first N]"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

import torch

from tests.simulator.schedule import ViolationError, run_seed


def run_seeds(seeds: Iterable[int]) -> tuple[Counter[str], list[str]]:
    """Return counts of what happened, and one line for each seed that broke a promise."""
    census: Counter[str] = Counter()
    violations = []
    for seed in seeds:
        try:
            simulation = run_seed(seed)
        except ViolationError as error:
            violations.append(str(error))
            sys.stderr.write(f"{error}\n")
            continue
        census["schedules"] += 1
        census["requests"] += len(simulation.records)
        census.update(simulation.seen)
        census.update({f"ended by {reason}": count for reason, count in simulation.ends.items()})
        census.update({f"fault: {point}": count for point, count in simulation.faults.failed.items()})
    return census, violations


def main() -> int:
    """Return exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator")
    parser.add_argument("--seed", type=int, help="run this seed alone and print the hash of its events")
    parser.add_argument("--seeds", type=int, default=1000, help="number of seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="first seed (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.seed is not None:
        sys.stdout.write(f"seed {arguments.seed}: log {run_seed(arguments.seed).log_hash}\n")
        return 0
    start = time.monotonic()
    census, violations = run_seeds(range(arguments.first, arguments.first + arguments.seeds))
    for name, count in census.items():
        sys.stdout.write(f"{name:28s} {count:10d}\n")
    sys.stdout.write(f"{len(violations)} violations in {time.monotonic() - start:.0f} s\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
