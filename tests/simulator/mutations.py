"""Mutation testing: apply each hand-made bug and search for a seed that finds it.

python -m tests.simulator.mutations [NUMBER OF SEEDS]

Source is changed in memory only. The old text must occur exactly once.
"""

import importlib
import inspect
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from tests.simulator.bugs import MUTATIONS
from tests.simulator.bugs.edits import Edit, Mutation
from tests.simulator.schedule import run_seed

HANG_S = 60.0  # a schedule takes about 20 ms; one that takes this long counts as a failure


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """Apply a bug inside the `with` block. Raises ValueError if the old text of an edit does not occur exactly once."""
    undo: list[tuple[Any, str, Any]] = []
    try:
        for edit in mutation.edits:
            undo += _apply(edit)
        yield
    finally:
        for owner, name, original in reversed(undo):
            setattr(owner, name, original)


def _apply(edit: Edit) -> list[tuple[Any, str, Any]]:
    module_name, _, path = edit.where.partition(":")
    is_absolute = module_name.startswith(("engine.", "server."))
    module = importlib.import_module(module_name if is_absolute else f"engine.{module_name}")
    *classes, name = path.split(".")
    owner: Any = getattr(module, classes[0]) if classes else module
    original = inspect.getattr_static(owner, name)
    source = inspect.getsource(original.fget if isinstance(original, property) else original)
    if source.count(edit.old) != 1:
        raise ValueError(f"{edit.where}: the old text occurs {source.count(edit.old)} times: {edit.old}")
    mutated = textwrap.dedent(source.replace(edit.old, edit.new))
    namespace: dict[str, Any] = {}
    exec(compile(mutated, f"<mutated {edit.where}>", "exec"), module.__dict__, namespace)
    owners = [owner] if classes else [m for m in _product_modules() if getattr(m, name, None) is original]
    for each in owners:
        setattr(each, name, namespace[name])
    return [(each, name, original) for each in owners]


def _product_modules() -> list[Any]:
    return [module for name, module in sys.modules.items() if name.startswith(("engine.", "server."))]


def find_killing_seed(
    mutation: Mutation, seeds: int, hint: int | None = None, run: Callable[[int], object] = run_seed
) -> int | None:
    """Return a seed that finds the bug, or None: the hint, else the first below `seeds`. `run` runs a seed."""
    with applied(mutation):
        for seed in [*([] if hint is None else [hint]), *range(seeds)]:
            try:
                with _hang_guard():
                    run(seed)
            except Exception:  # noqa: BLE001 (any exception counts)
                return seed
    return None


@contextmanager
def _hang_guard() -> Iterator[None]:
    def ring(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(mutations: Sequence[Mutation], run: Callable[[int], object]) -> int:
    """Print the table of `mutations`, each searched with as many seeds as the command line says; `run` runs a seed.

    Return exit code 1 if a bug survives.
    """
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    torch.set_num_threads(1)
    killed = 0
    for mutation in mutations:
        seed = find_killing_seed(mutation, seeds, run=run)
        killed += seed is not None
        sys.stdout.write(f"{mutation.name:75s} {'SURVIVES' if seed is None else f'killed by seed {seed}'}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{killed} of {len(mutations)} killed, each within {seeds} seeds\n")
    return 0 if killed == len(mutations) else 1


if __name__ == "__main__":
    sys.exit(main(MUTATIONS, run_seed))
