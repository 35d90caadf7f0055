"""Fuzz for a while: `python -m tests.fuzz [TARGET ...] --seconds 60 --seed 0`.

An input that fails is kept in the corpus. The order of inputs depends only on the seed, their number on the machine.
"""

import argparse
import faulthandler
import hashlib
import random
import sys
import time
import traceback
from collections.abc import Iterator

from tests.fuzz.kept_inputs import CORPUS, inputs_of
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS


def endless_inputs(name: str, seed: int) -> Iterator[bytes]:
    """Yield the corpus, then mutations of it without end."""
    rng = random.Random(f"{name} {seed}")
    corpus = inputs_of(name)
    pieces = [*corpus, *TARGETS[name].words]
    yield from corpus
    while True:
        yield mutated(rng, rng.choice(corpus), pieces)


def fuzz(name: str, seconds: float, seed: int) -> bool:
    """Run one target; return False at the first input that fails, which then is in the corpus."""
    ends_s, count = time.monotonic() + seconds, 0
    last = CORPUS / name / "running"  # remains if the interpreter crashes
    for data in endless_inputs(name, seed):
        if time.monotonic() > ends_s:
            break
        last.write_bytes(data)
        try:
            TARGETS[name].check(data)
        except Exception:  # noqa: BLE001 (whatever it is, it is the finding)
            kept = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
            last.replace(kept)
            sys.stdout.write(f"{name}: {kept} after {count} inputs\n{traceback.format_exc()}")
            return False
        count += 1
    last.unlink(missing_ok=True)
    sys.stdout.write(f"{name}: {count} inputs, none failed\n")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    faulthandler.enable()
    num_failed = sum(not fuzz(name, given.seconds, given.seed) for name in given.target)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
