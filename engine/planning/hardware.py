"""Peak figures of GPUs and CPUs, from their makers' data sheets. The source of each stands behind it."""

from dataclasses import dataclass

GB, T = 1e9, 1e12


@dataclass(frozen=True, slots=True)
class Hardware:
    """One GPU, or all CPUs of a host."""

    memory_bytes_per_s: float
    operations_per_s: float  # bfloat16 with float32 sums, without sparsity; a multiplication and an addition are two
    gpu_memory_bytes: int | None = None  # None: CPUs, whose memory has no fixed size

    @property
    def is_gpu(self) -> bool:
        return self.gpu_memory_bytes is not None


def _cpus(sockets: int, channels: int, mega_transfers: int, cores: int, operations: int, gigahertz: float) -> Hardware:
    """Return a host's CPUs. `channels`: of each socket, 8 bytes wide; `operations`: of a core in a cycle."""
    bytes_per_s = sockets * channels * mega_transfers * 1e6 * 8
    return Hardware(bytes_per_s, sockets * cores * operations * gigahertz * 1e9)


HARDWARE = {
    "a100": Hardware(2039 * GB, 312 * T, 80 * 10**9),  # NVIDIA A100 data sheet, SXM with 80 GB
    "h100": Hardware(3350 * GB, 989 * T, 80 * 10**9),  # NVIDIA H100 data sheet, SXM
    "h200": Hardware(4800 * GB, 989 * T, 141 * 10**9),  # NVIDIA H200 data sheet, SXM
    # AMD EPYC 9654 product page: 12 channels of DDR5-4800, 96 cores, 2.4 GHz. Zen 4: two 256-bit units, each 16
    # products and sums in a cycle.
    "epyc-9654": _cpus(1, 12, 4800, 96, 64, 2.4),
    "2x-epyc-9654": _cpus(2, 12, 4800, 96, 64, 2.4),
    # Intel Xeon Platinum 8480+ product page: 8 channels of DDR5-4800, 56 cores, 2.0 GHz. AMX: 1,024 operations in
    # bfloat16 in a cycle (Intel 64 and IA-32 Architectures Optimization Reference Manual).
    "xeon-8480": _cpus(1, 8, 4800, 56, 1024, 2.0),
    "2x-xeon-8480": _cpus(2, 8, 4800, 56, 1024, 2.0),
}
