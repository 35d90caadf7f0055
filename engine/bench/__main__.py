"""`python -m engine.bench TASK`: the process with torch behind `smoe bench kernels` and `smoe bench engine`.

TASK is the JSON of a Task. Standard output gets one JSON object, standard error a line per measurement. Settings that
cannot work print one line and exit 2, ranks that end 1.
"""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import msgspec

from engine.bench.steps import StepBench
from engine.bench.task import Task
from engine.capacity.sizing import served_dtype, served_kv_dtype
from engine.engine import Engine
from engine.errors import EngineConfigError, FatalEngineError
from engine.startup.backend import choose_backend
from engine.startup.loading import DTYPES, choose_device, load_random
from model.bench.kernels import Setting, measure_kernels
from model.bench.roofline import Roofline, RooflineProbe
from model.bench.shapes import PRESETS
from model.checkpoint.errors import CheckpointError


def run(task: Task) -> dict[str, Any]:
    """Run a task and return its results. Raises EngineConfigError and CheckpointError."""
    return _kernels(task) if task.kind == "kernels" else _steps(task)


def _kernels(task: Task) -> dict[str, Any]:
    config = PRESETS[task.preset]
    device = choose_device(task.engine)
    dtype = DTYPES[served_dtype(task.engine, config)]
    backend = choose_backend(task.engine, device, dtype)
    limits = RooflineProbe(backend.ops, device)
    _print_roofline(task, limits.at_start)
    setting = Setting(
        ops=backend.ops,
        config=config,
        dtype=dtype,
        kv_dtype=served_kv_dtype(task.engine, config),
        arithmetic=_arithmetic(backend.quantization, served_dtype(task.engine, config), limits.at_start),
        device=device,
        limits=limits,
    )
    rows = [asdict(_print_row(row)) for row in measure_kernels(setting, task.rows, task.contexts)]
    return _results(task, backend.numerics, limits.at_start) | {"kernels": rows}


def _steps(task: Task) -> dict[str, Any]:
    engine = (
        Engine.load(task.engine)
        if task.engine.model
        else Engine(task.engine, load_random(task.engine, PRESETS[task.preset]))
    )
    loaded = engine.loaded
    limits = RooflineProbe(loaded.runner.model.ops, loaded.device)
    _print_roofline(task, limits.at_start)
    bench = StepBench(
        engine, limits, _arithmetic(loaded.quantization, served_dtype(task.engine, loaded.config), limits.at_start)
    )
    steps = [asdict(_print_row(step)) for step in _each_step(bench, task)]
    return _results(task, loaded.numerics, limits.at_start) | {"weight_bytes": loaded.weight_bytes, "steps": steps}


def _each_step(bench: StepBench, task: Task) -> Iterator[Any]:
    batches = bench.fitting(task.rows, lambda reason: sys.stderr.write(f"  left out: {reason}\n"))
    yield from bench.prefill(task.prefills)
    for context in task.contexts:
        yield from bench.decode(batches, context)


def _results(task: Task, numerics: str, roofline: Roofline) -> dict[str, Any]:
    return {
        "kind": task.kind,
        "model": task.engine.model or task.preset,
        "numerics": numerics,
        "quantization": task.engine.quantization,
        "kv_cache_dtype": task.engine.kv_cache_dtype,
        "roofline": roofline.as_fields(),
    }


def _arithmetic(quantization: str, dtype: str, roofline: Roofline) -> str:
    """Return the arithmetic of matrix products: int8 if weights are quantized and the backend multiplies int8."""
    return "int8" if quantization not in ("none", "lossless") and "int8" in roofline.operations_per_s else dtype


def _print_roofline(task: Task, roofline: Roofline) -> None:
    peaks = ", ".join(f"{name} {peak / 1e9:,.0f} G/s" for name, peak in roofline.operations_per_s.items())
    sys.stderr.write(f"{task.kind}: memory {roofline.bytes_per_s / 1e9:.1f} GB/s, {peaks}\n")


def _print_row(row: Any) -> Any:
    name = row.kernel if hasattr(row, "kernel") else row.kind
    size = f"{row.rows} rows" if hasattr(row, "rows") else f"batch {row.batch}"
    sys.stderr.write(
        f"  {name}, {size}, context {row.context}: {1e3 * row.seconds:.3f} ms, {row.share:.0%} of the limit\n"
    )
    return row


def main() -> int:
    """Run the task of the command line; return the exit code."""
    task = msgspec.json.decode(sys.argv[1], type=Task)
    try:
        results = run(task)
    except (EngineConfigError, CheckpointError) as error:
        sys.stderr.write(f"smoe: {error}\n")
        return 2
    except FatalEngineError as error:  # ranks that do not come, or that end
        sys.stderr.write(f"smoe: {error}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(results) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
