"""`python -m engine.startup.probe`: GPUs, cores and instruction sets of this machine, as one JSON object.

A separate process, because it imports torch, and because a broken torch or native library may crash it. Loads no model.
"""

import json
import os
import shutil
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from engine.capacity.machine.host_resources import num_cores
from model.ops.native.library import NativeLibrary, NativeUnavailableError

C_COMPILERS = ("gcc", "clang")


@dataclass(frozen=True)
class Probe:
    """Compute resources of this machine."""

    torch_version: str
    gpus: list[str]  # names
    gpu_free_bytes: list[int | None]  # of each GPU beside a process' own context; None: the driver does not say
    num_cores: int  # usable by this process
    isas: list[str]  # usable instruction sets of the native library
    fastest_isa: str | None  # of these, what `--isa auto` selects
    native_error: str | None  # reason if there is no native library
    launcher_error: str | None  # what Triton lacks to build its launchers, on a machine with a GPU
    cache_error: str | None  # why Triton cannot keep what it compiles, there


def probe() -> Probe:
    """Detect the resources of this machine."""
    isas, fastest_isa, native_error = [], None, None
    try:
        library = NativeLibrary()
        isas, fastest_isa = library.isas(), library.fastest_isa()
    except NativeUnavailableError as error:
        native_error = str(error)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = [gpu_free_bytes(i) for i in range(len(gpus))]
    of_triton = (launcher_error(), cache_error()) if gpus else (None, None)
    return Probe(torch.__version__, gpus, free, num_cores(), isas, fastest_isa, native_error, *of_triton)


def gpu_free_bytes(index: int) -> int | None:
    """Return the free memory of a GPU, as an engine would find it; None if this process cannot use the GPU."""
    try:
        return torch.cuda.mem_get_info(index)[0]
    except RuntimeError:  # such as out of memory: another process has taken all of it
        return None


def launcher_error() -> str | None:
    """Return what is missing for Triton, which compiles a C launcher for each kernel when it first runs."""
    if not any(map(shutil.which, C_COMPILERS)):
        return "no C compiler (gcc or clang) is installed"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return f"{header} is missing"
    return None


def cache_error() -> str | None:
    """Return why Triton cannot keep what it compiles."""
    cache = triton_cache()
    return None if cache is None or _may_write(cache) else f"{cache} cannot be written"


def triton_cache() -> Path | None:
    """Return the directory where Triton keeps what it compiles; None if it is not installed."""
    try:
        from triton.knobs import cache  # here, since only a machine with a GPU needs it
    except ImportError:
        return None
    return Path(cache.dir)


def _may_write(directory: Path) -> bool:
    """Return whether the directory may be written, or made where it does not exist."""
    directory = directory.absolute()
    existing = next(
        path for path in (directory, *directory.parents) if os.path.exists(path)
    )  # no error if none may look
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


if __name__ == "__main__":
    print(json.dumps(asdict(probe())))  # noqa: T201 (the output of this program)
