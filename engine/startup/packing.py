"""Pack a checkpoint: read it once, and write its weights as the native kernels read them from memory.

As a program, `python -m engine.startup.packing PARENT_PID`: reads a PackRequest from its standard input, and writes a
PackReport in a line for each step of progress and at the end. A process of its own, because it imports torch.
"""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import torch

from engine.assertions import NO_ASSERTIONS, are_assertions_off
from engine.capacity.machine.host_resources import format_bytes, num_cores
from engine.capacity.pack_messages import PackReport, PackRequest
from engine.capacity.sizing import served_dtype
from engine.config import EngineConfig
from engine.errors import EngineConfigError
from engine.out_of_memory import is_out_of_memory
from engine.parent_death import die_with_parent
from engine.startup.backend import Backend, choose_backend
from model.checkpoint.checkpoint import read_config, read_stored_weights
from model.checkpoint.errors import CheckpointError
from model.checkpoint.identity import files_digest, identify
from model.checkpoint.manifest import verify_manifest
from model.checkpoint.pack.config import write_config
from model.checkpoint.pack.header import PackHeader, header_space, is_pack, network_sizes
from model.checkpoint.pack.side_files import copy_side_files
from model.checkpoint.stored_tensor import StoredTensor, StoredWeight
from model.checkpoint.weight_sizes import weight_bytes
from model.config import ModelConfig
from model.loader import LoadOptions, open_network
from model.pack.network import NetworkTensors
from model.pack.writer import TensorWriter, finish, new_pack

CPU = torch.device("cpu")
FAILED, INTERRUPTED = 2, 130  # exit codes

OnProgress = Callable[[str, int, int], None]  # phase, bytes done, bytes in all


def pack(config: EngineConfig, target: Path, on_progress: OnProgress) -> PackReport:
    """Pack the checkpoint `config.model`, in its dtype and quantization, into the new folder `target`.

    Holds a layer in memory at a time. The folder appears when it is complete. Raises CheckpointError and
    EngineConfigError.
    """
    source = Path(config.model)
    if is_pack(source):
        raise EngineConfigError(f"{source} is a pack; give the checkpoint that it was made of")
    config = msgspec.structs.replace(config, device="cpu", backend="native")
    model, warnings = read_config(source, rope_theta=config.rope_theta)
    if config.verify:
        verify_manifest(source, partial(on_progress, "checksums"))
    stored = read_stored_weights(source, model)
    identity = identify(stored.values(), is_verified=config.verify)
    dtype = served_dtype(config, model)
    backend = choose_backend(config, CPU, getattr(torch, dtype))
    sizes = weight_bytes(stored, getattr(torch, dtype).itemsize, config.quantization, backend.ops.block_formats)
    _check_space(target, header_space(model) + sum(sizes.values()))
    with new_pack(target) as (folder, stream):
        copy_side_files(source, folder)
        write_config(folder, model, dtype)
        writer = TensorWriter(stream, model)
        matrices = _write_network(config, model, backend, writer, partial(on_progress, "weights"))
        if files_digest(stored.values()) != identity.files:
            raise CheckpointError(f"{source}: files were replaced while they were packed; start again")
        header = PackHeader(
            source=str(source),
            contents=identity.contents,
            quantization=config.quantization,
            dtype=dtype,
            network=network_sizes(model),
            stored=tuple(map(_described, stored.values())),
            tensors=writer.tensors,
            matrices=matrices,
            file_bytes=writer.file_bytes,
        )
        on_progress("writing to the disk", 0, 0)
        finish(stream, header, folder)
    warnings += identity.warnings
    return PackReport(phase="done", done_bytes=header.file_bytes, total_bytes=header.file_bytes, warnings=warnings)


def _write_network(
    config: EngineConfig,
    model: ModelConfig,
    backend: Backend,
    writer: TensorWriter,
    on_progress: Callable[[int, int], None],
) -> dict[str, object]:
    """Read, pack and write part by part; return how the written tensors form matrices."""
    dtype, num_threads = getattr(torch, served_dtype(config, model)), config.threads or num_cores()
    options = LoadOptions(dtype, CPU, on_progress, check_values=config.verify, num_threads=num_threads)
    network = open_network(Path(config.model), model, backend.ops, options)
    parts = NetworkTensors(writer.write)
    embedding = network.embedding()
    parts.tensor("embedding", embedding)
    for index, layer in enumerate(network.layers()):
        parts.layer(index, layer)
    parts.tensor("norm", network.norm())
    parts.linear("head", network.head(embedding))
    return parts.matrices


def _described(weight: StoredWeight) -> StoredTensor:
    """Return what memory plans need of a weight: name, type, shape and bytes."""
    return StoredTensor(Path(), weight.name, weight.dtype, weight.shape, 0, weight.num_bytes)


def _check_space(target: Path, num_bytes: int) -> None:
    """Raise EngineConfigError if the disk has not the space, before anything is written."""
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < num_bytes:
        need, free = format_bytes(num_bytes), format_bytes(free_bytes)
        raise EngineConfigError(f"{target}: the pack needs {need} of disk, and {free} are free in {existing}")


def main() -> int:
    """Run the program; return its exit code."""
    die_with_parent(*map(int, sys.argv[1:2]))
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=PackRequest)
    try:
        if are_assertions_off():
            raise EngineConfigError(NO_ASSERTIONS)
        _report(pack(request.config, Path(request.target), lambda *progress: _report(PackReport(*progress))))
    except (CheckpointError, EngineConfigError) as error:
        _report(PackReport("failed", error=str(error)))
        return FAILED
    except KeyboardInterrupt:  # Ctrl-C reaches the command too, which says so
        return INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _report(PackReport("failed", error="out of memory: a layer of the packed weights must fit"))
        return FAILED
    return 0


def _report(report: PackReport) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
