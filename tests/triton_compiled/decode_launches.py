"""Record the kernels that a decode step launches: Triton's in their order, and how many of torch's ops."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.kv_pool import KvPool
from model.ops.triton.kernel_variants import KernelVariant
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat
from tests.triton_compiled.layer import BLOCK_SIZE, META, meta_batch, meta_model, sampling_rows
from tests.triton_compiled.recording import LaunchRecorder

ALLOCATIONS = ("aten.empty", "aten.new_empty")


@dataclass(frozen=True)
class Launch:
    """One launch: the variant, and its programs."""

    key: object
    launched: KernelVariant
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]  # of this launch

    @property
    def name(self) -> str:
        return self.launched.name

    @property
    def options(self) -> dict[str, Any]:
        return self.launched.options

    @property
    def num_programs(self) -> int:
        return math.prod(self.grid)

    @property
    def bytes_per_weight(self) -> int:
        """Bytes of a weight, or of a cached number: those of the second argument, or 1 in words of four."""
        return 1 if self.options.get("FORMAT", "plain") != "plain" else int(self.arguments[1].dtype.itemsize)


@dataclass(frozen=True)
class DecodeStep:
    """Launches of one step."""

    rows: int
    layer: list[Launch]  # of a layer that is not the first
    torch_per_layer: int  # ops of torch
    head: Launch
    draw: Launch
    other_launches: int  # of the step: before, between and behind layers, head and draw


class OrderedRecorder(LaunchRecorder):
    """Also keeps every launch in order."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        before = self.num_launches
        key = self.record(kernel, grid, *arguments, **options)
        if self.num_launches > before:
            self.launches.append(Launch(key, self.variants[key], grid, arguments))


@dataclass
class TorchLaunches(TorchDispatchMode):
    """Counts the ops of torch that launch a kernel on a GPU: not views, and not allocations."""

    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if not func.is_view and not name.startswith(ALLOCATIONS):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def record_network(weight_format: WeightFormat, num_rows: int, num_layers: int) -> tuple[list[Launch], list[str]]:
    """Return Triton's launches and torch's ops of the network in one step of decoding rows: what a CUDA graph holds."""
    recorder = OrderedRecorder()
    model = meta_model(TritonOps(torch.bfloat16, weight_format, launch=recorder), num_layers)
    pool = KvPool(model.config, 100, BLOCK_SIZE, "bfloat16", META)
    with TorchLaunches() as torch_launches:
        model.forward(meta_batch(num_rows, num_rows, num_layers), pool)
    return recorder.launches, torch_launches.names


def count_launches(weight_format: WeightFormat, num_rows: int, num_layers: int) -> int:
    """Return how many kernels the network launches in one step of decoding rows."""
    launches, names = record_network(weight_format, num_rows, num_layers)
    return len(launches) + len(names)


def decode_step(weight_format: WeightFormat, num_rows: int) -> DecodeStep:
    """Record a step of decoding rows that are sampled without log probabilities."""
    one, one_torch = record_network(weight_format, num_rows, 1)
    two, two_torch = record_network(weight_format, num_rows, 2)
    num_per_layer, torch_per_layer = len(two) - len(one), len(two_torch) - len(one_torch)
    sampler = OrderedRecorder()
    ops = TritonOps(torch.bfloat16, weight_format, launch=sampler)
    logits = torch.empty(num_rows, 32000, device=META)
    with TorchLaunches() as sampler_torch:
        ops.sample(logits, sampling_rows(num_rows, -1))
    [draw] = sampler.launches
    layer, head = two[-1 - num_per_layer : -1], two[-1]
    others = len(one) - num_per_layer - 1 + len(one_torch) - torch_per_layer + len(sampler_torch.names)
    return DecodeStep(num_rows, layer, torch_per_layer, head, draw, others)
