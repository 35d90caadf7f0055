"""python -m tests.measure.reliability.noninterference [--seed S] [--count N] [--json FILE]

Serve a tenant's requests alone and beside random requests of another tenant, on the product's HTTP server, client and
engine loop in one process, and compare the replies bit by bit. Prints a JSON object with counts and the first
differences. Exit code 1 if there is one. About 0.2 s of CPU time for each case.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import uvloop

from tests.noninterference.comparison import compare_cases

NUM_SHOWN = 5


def main() -> int:
    """Compare and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100, help="number of cases")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # of invalid requests, which are meant
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    found = uvloop.run(compare_cases(options.seed, options.count))
    figures = vars(found) | {
        "num_differences": len(found.differences),
        "differences": found.differences[:NUM_SHOWN],
        "seconds": round(time.monotonic() - start_s, 1),
        "cpu_seconds": round(time.process_time() - start_cpu_s, 1),
    }
    text = json.dumps(figures, indent=2)
    sys.stdout.write(text + "\n")
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 1 if found.differences else 0


if __name__ == "__main__":
    sys.exit(main())
