"""Check the checksums of a pack's tensors. Imports no torch."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.header import WEIGHTS_NAME, PackedTensor, first_lost_tensor, read_any_header, read_header

READ_BYTES = 1 << 20
NUM_THREADS = 4  # hashing releases the interpreter's lock, so one thread reads while another hashes


def verify_pack(directory: Path, on_progress: Callable[[int, int], None]) -> int:
    """Read all tensors of a pack and compare their SHA-256 sums with the header's. Return the number of tensors.

    Calls on_progress(bytes checked, total bytes) after each tensor. Raises CheckpointError, which names the first
    damaged tensor in the order of the file.
    """
    header = read_header(directory)
    tensors = sorted(header.tensors.values(), key=lambda tensor: tensor.start)
    total, done = sum(tensor.num_bytes for tensor in tensors), 0
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="sha256") as threads:
        running = {threads.submit(_is_intact, directory / WEIGHTS_NAME, tensor): tensor for tensor in tensors}
        try:
            for future in as_completed(running):
                done += running[future].num_bytes
                on_progress(done, total)
            damaged = [tensor.name for future, tensor in running.items() if not future.result()]
        finally:
            threads.shutdown(cancel_futures=True)
    if damaged:
        more = f", and so do {len(damaged) - 1} more" if len(damaged) > 1 else ""
        file = directory / WEIGHTS_NAME
        raise CheckpointError(
            f"{file} is damaged: tensor {damaged[0]} has another checksum than its header lists{more}"
        )
    return len(tensors)


def bus_error_reason(directory: Path) -> str:
    """Return why a process that reads the mapped file of a pack got SIGBUS, in one line.

    The system sends this signal where the file ends before its map does, or where the disk cannot be read.
    """
    file = directory / WEIGHTS_NAME
    try:
        header, size = read_any_header(directory)
    except CheckpointError as error:
        return f"the weights were lost while they were served: {error}"
    if lost := first_lost_tensor(header, size):
        return f"{file} was cut while it was served, to {size} of {header.file_bytes} bytes: tensor {lost} is lost"
    return f"{file} could not be read from the disk; find the damaged tensor with: smoe pack --check {directory}"


def _is_intact(file: Path, tensor: PackedTensor) -> bool:
    digest, left = hashlib.sha256(), tensor.num_bytes
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(tensor.start)
            while left and (part := stream.read(min(left, READ_BYTES))):
                digest.update(part)
                left -= len(part)
    except OSError as error:
        raise CheckpointError(f"{file}: tensor {tensor.name} cannot be read: {error.strerror}") from None
    return digest.hexdigest() == tensor.sha256
