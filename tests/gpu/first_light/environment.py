"""Stage env: what this machine is, and its limits."""

import platform
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from model.bench.roofline import measure
from model.ops.reference.ops import ReferenceOps
from tests.gpu.first_light.result import Options, Row

PACKAGES = ("torch", "triton", "numpy", "safetensors", "transformers", "msgspec", "llguidance")
PROGRAMS = ("gcc", "nvidia-smi", "compute-sanitizer")


def report(options: Options) -> list[Row]:
    """Report versions, programs, the GPU, and its measured bandwidth and products."""
    rows: list[Row] = [{"case": "python", "is": platform.python_version()}]
    rows += [{"case": name, "is": _version(name)} for name in PACKAGES]
    rows += [{"case": name, "is": shutil.which(name) or "missing"} for name in PROGRAMS]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    rows.append({"case": "Python.h", "is": str(header), "ok": header.exists()})
    if options.device != "cuda":
        return rows
    properties = torch.cuda.get_device_properties(0)
    rows.append({"case": "gpu", "is": properties.name, "ok": properties.major >= 8})
    rows.append(
        {
            "case": "memory",
            "gigabytes": properties.total_memory / 1e9,
            "multiprocessors": properties.multi_processor_count,
        }
    )
    limits = measure(ReferenceOps(), torch.device("cuda"))
    rows.append({"case": "copy", "gigabytes_per_s": limits.bytes_per_s / 1e9})
    rows += [{"case": name, "teraops_per_s": peak / 1e12} for name, peak in limits.operations_per_s.items()]
    return rows


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
