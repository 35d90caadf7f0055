"""`python -m engine.startup.probe`: GPUs, cores and instruction sets of this machine, as one JSON object.

A separate process, because it imports torch, and because a broken torch or native library may crash it. Loads no model.
"""

import json
from dataclasses import asdict, dataclass

import torch

from engine.capacity.host_resources import num_cores
from model.ops.native.library import NativeLibrary, NativeUnavailableError


@dataclass(frozen=True)
class Probe:
    """Compute resources of this machine."""

    torch_version: str
    gpus: list[str]  # names
    num_cores: int  # usable by this process
    isas: list[str]  # usable instruction sets of the native library, fastest last
    native_error: str | None  # reason if there is no native library


def probe() -> Probe:
    """Detect the resources of this machine."""
    isas, native_error = [], None
    try:
        isas = NativeLibrary().isas()
    except NativeUnavailableError as error:
        native_error = str(error)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Probe(torch.__version__, gpus, num_cores(), isas, native_error)


if __name__ == "__main__":
    print(json.dumps(asdict(probe())))  # noqa: T201 (the output of this program)
