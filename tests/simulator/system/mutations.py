"""Search for a seed that finds each bug of the whole system: python -m tests.simulator.system.mutations [SEEDS]"""

import sys

import torch

from tests.simulator.mutations import find_killing_seed
from tests.simulator.system.bugs import SYSTEM_BUGS
from tests.simulator.system.schedule import run_seed


def main(seeds: int) -> int:
    """Print the table; return exit code 1 if a bug survives."""
    torch.set_num_threads(1)
    killed = 0
    for mutation in SYSTEM_BUGS:
        seed = find_killing_seed(mutation, seeds, run=run_seed)
        killed += seed is not None
        sys.stdout.write(f"{mutation.name:75s} {'SURVIVES' if seed is None else f'killed by seed {seed}'}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(SYSTEM_BUGS)} killed, each within {seeds} seeds\n")
    return 0 if killed == len(SYSTEM_BUGS) else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
