"""Run random schedules of the whole system: python -m tests.simulator.system [--seeds N] [--start S]"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable

import torch

from tests.simulator.system.schedule import SystemViolationError, run_seed


def run_seeds(seeds: Iterable[int]) -> tuple[Counter[str], list[str]]:
    """Return counts of what happened, and one message for each seed that broke a promise."""
    census: Counter[str] = Counter()
    violations = []
    for seed in seeds:
        try:
            simulation = run_seed(seed)
        except SystemViolationError as error:
            violations.append(str(error))
            sys.stderr.write(f"{error}\n\n")
            continue
        census["schedules"] += 1
        census["engine processes"] += len(simulation.truth.lives)
        census.update(simulation.truth.seen)
    return census, violations


def main() -> int:
    """Return exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulator.system")
    parser.add_argument("--seeds", type=int, default=1000, help="number of seeds (default: %(default)s)")
    parser.add_argument("--start", type=int, default=0, help="first seed (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begin_s = time.monotonic()
    census, violations = run_seeds(range(arguments.start, arguments.start + arguments.seeds))
    for name, count in sorted(census.items()):
        sys.stdout.write(f"{name:40s} {count:10d}\n")
    sys.stdout.write(f"{len(violations)} violations in {time.monotonic() - begin_s:.0f} s\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
