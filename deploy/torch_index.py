"""Print the index that `make install` installs torch from; print nothing for the one that pip is configured for.

    python deploy/torch_index.py auto      PyTorch's CPU index on Linux without an NVIDIA card, if it can be reached
    python deploy/torch_index.py URL       this index

On Linux pip's own index has torch built for CUDA: several GB that a machine without a card never uses. Why an index was
chosen goes to standard error. Runs before anything is installed, so it needs nothing but Python.
"""

import os
import shutil
import sys
import urllib.request

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
AUTO = "auto"
CARD = "/dev/nvidiactl"  # a file of NVIDIA's driver
TIMEOUT_S = 10.0


def has_card() -> bool:
    """Return whether this machine has NVIDIA's driver."""
    return os.path.exists(CARD) or shutil.which("nvidia-smi") is not None


def can_reach(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Return whether the index answers. Proxies are those of the environment (HTTPS_PROXY)."""
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=timeout_s) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False


def choose(wanted: str, *, platform: str, with_card: bool, cpu_index: str = CPU_INDEX) -> tuple[str, str]:
    """Return the index, empty for pip's own, and a line that says why. `platform`: sys.platform."""
    if wanted != AUTO:
        return (
            wanted,
            f"torch comes from {wanted}" if wanted else "torch comes from the index that pip is configured for",
        )
    if platform != "linux":
        return "", "torch comes from the index that pip is configured for"
    if with_card:
        return "", "NVIDIA's driver is here: torch comes from the index that pip is configured for, with CUDA"
    if can_reach(cpu_index):
        return cpu_index, f"no NVIDIA card here: torch comes from {cpu_index}, without CUDA (TORCH_INDEX= changes that)"
    return (
        "",
        f"{cpu_index} cannot be reached: torch comes from the index that pip is configured for "
        "(usually with CUDA, 5.4 GB)",
    )


def main() -> None:
    """Print the index of the first argument."""
    index, reason = choose(sys.argv[1] if len(sys.argv) > 1 else "", platform=sys.platform, with_card=has_card())
    sys.stderr.write(f"{reason}\n")
    sys.stdout.write(f"{index}\n")


if __name__ == "__main__":
    main()
