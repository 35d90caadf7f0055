"""`python -m engine.startup.probe`: what the engine process would find here, as one JSON object. Loads no model.

A process of its own, because torch is its to import, and because a broken torch or library may take the process along.
"""

import json
from dataclasses import asdict, dataclass

import torch

from engine.capacity.host_resources import num_cores
from model.ops.native.library import NativeLibrary, NativeUnavailableError


@dataclass(frozen=True)
class Probe:
    """What there is to compute with."""

    torch_version: str
    gpus: list[str]  # their names
    num_cores: int  # that this process may use
    isas: list[str]  # instruction sets that the native library runs here, the fastest last
    native_error: str | None  # why there is no native library


def probe() -> Probe:
    """Looks at this machine."""
    isas, native_error = [], None
    try:
        isas = NativeLibrary().isas()
    except NativeUnavailableError as error:
        native_error = str(error)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Probe(torch.__version__, gpus, num_cores(), isas, native_error)


if __name__ == "__main__":
    print(json.dumps(asdict(probe())))  # noqa: T201  # what it is for
