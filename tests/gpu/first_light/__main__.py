"""`python -m tests.gpu.first_light run1|run2|run3|run4|STAGE ...`: the first minutes of the Triton backend on a GPU.

Each stage is a process with its own limit, so that a crash or a hang costs only that stage. It needs torch, triton,
numpy and safetensors; a stage that needs more says what is missing. Prints a table and writes first_light.json.
docs/operation/gpu-first-light.md explains the stages and what to do about a failure.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.gpu.first_light.result import MissingPartError, Options, Result, failures, table

MARK = "first-light-result "  # a stage's last line of output: this, then JSON


@dataclass(frozen=True)
class StageSpec:
    """A stage's function, and its limit."""

    function: str  # module:function
    limit_s: int
    program: tuple[str, ...] = ()  # runs the stage's process


ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # as the server starts its engine
FOLDER = "tests.gpu.first_light."
STAGES = {
    "env": StageSpec(FOLDER + "environment:report", 60),
    "compile": StageSpec(FOLDER + "compilation:compile_all", 180),
    "ops": StageSpec(FOLDER + "ops:check_ops", 180),
    "parity": StageSpec(FOLDER + "parity:compare_with_transformers", 90),
    "graphs": StageSpec(FOLDER + "graphs:compare_replays", 120),
    "sanitizer": StageSpec(FOLDER + "ops:check_tiny_ops", 120, ("compute-sanitizer", "--error-exitcode", "86")),
    "eager": StageSpec(FOLDER + "steps:time_eager_steps", 150),
    "steps": StageSpec(FOLDER + "steps:time_graphed_steps", 150),
    "sweep": StageSpec(FOLDER + "sweep:time_tiles", 240),
    "final": StageSpec(FOLDER + "steps:time_all_steps", 300),
    "ranks": StageSpec(FOLDER + "ranks:compare_ranks", 300),
}
RUNS = {  # each at most 10 minutes, and each starts from nothing
    "run1": ("env", "compile", "ops", "graphs"),
    "run2": ("env", "parity", "sanitizer", "eager", "steps"),
    "run3": ("env", "sweep", "final"),
    "run4": ("env", "ranks"),
}


def run_stage(name: str, options: Options) -> Result:
    """Run a stage in this process."""
    module, _, function = STAGES[name].function.partition(":")
    start = time.monotonic()
    result = Result(name, "ok")
    try:
        result.rows = getattr(importlib.import_module(module), function)(options)
        if failed := failures(result.rows):
            result.outcome, result.detail = "failed", f"{len(failed)}: {', '.join(failed)}"
    except ModuleNotFoundError as error:
        result.outcome, result.detail = "missing", f"package {error.name}"
    except MissingPartError as error:
        result.outcome, result.detail = "missing", str(error)
    except Exception as error:  # noqa: BLE001 (the result reports it)
        traceback.print_exc()
        result.outcome, result.detail = "error", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    result.seconds = time.monotonic() - start
    return result


def run_process(name: str, options: Options) -> Result:
    """Run a stage in a process of its own, within its limit."""
    spec, start = STAGES[name], time.monotonic()
    flags = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    flags += [] if options.early else ["--no-programmatic-launch"]
    command = [*spec.program, sys.executable, "-m", "tests.gpu.first_light", "--here", name, *flags]
    try:
        ran = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            timeout=spec.limit_s,
            check=False,
            env={**ALLOCATOR, **os.environ},
        )
    except subprocess.TimeoutExpired:
        return Result(name, "timeout", spec.limit_s, f"did not end within {spec.limit_s} s")
    except FileNotFoundError:
        return Result(name, "missing", 0.0, f"program {spec.program[0]}")
    seconds = time.monotonic() - start
    for line in reversed(ran.stdout.splitlines()):
        if line.startswith(MARK):
            result = Result(**json.loads(line.removeprefix(MARK)))
            if ran.returncode and result.outcome == "ok":
                result.outcome, result.detail = "failed", f"exit code {ran.returncode} of {spec.program[0]}"
            return result
    return Result(name, "error", seconds, f"the process ended with code {ran.returncode} and no result")


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Run the stages of the command line; return 0 if all are ok or lack only packages."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.first_light", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*RUNS, *STAGES], metavar="run1|run2|run3|run4|STAGE")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: Triton's interpreter")
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    parser.add_argument("--no-programmatic-launch", action="store_true", help="start no kernel early")
    parser.add_argument("--here", action="store_true", help="run one stage in this process")
    parser.add_argument("--output", type=Path, default=Path("first_light.json"), help="file for the figures")
    given = parser.parse_args(arguments)
    options = Options(given.device, given.tiny, not given.no_programmatic_launch)
    if given.here:
        _write(MARK + json.dumps(run_stage(given.names[0], options).as_fields()))
        return 0
    results = []
    for stage in [stage for name in given.names for stage in RUNS.get(name, (name,))]:
        results.append(run_process(stage, options))
        _write(f"{stage}: {results[-1].outcome} after {results[-1].seconds:.0f} s {results[-1].detail}")
        given.output.write_text(json.dumps([result.as_fields() for result in results], indent=1))
    _write(f"\n{table(results)}")
    return int(any(result.outcome not in ("ok", "missing") for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
