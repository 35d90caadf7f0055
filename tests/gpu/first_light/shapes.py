"""Shapes of the stages: Mixtral-8x7B's layer, or a tiny one for Triton's interpreter; and the backend for them."""

from dataclasses import dataclass, replace

import torch

from model.bench.shapes import PRESETS
from model.config import ModelConfig
from model.ops.triton.launch import HOPPER, Launch, launch_on_device, launcher_for
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat
from tests.gpu.first_light.result import Options


@dataclass(frozen=True)
class Setting:
    """Shapes, types and launcher of what a stage computes."""

    device: torch.device
    dtype: torch.dtype
    config: ModelConfig
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    launch: Launch
    arch: int  # compute capability times 10

    def ops(self, weight_format: WeightFormat = "plain", deterministic: bool = False) -> TritonOps:
        """Return the backend as it serves on this device."""
        return TritonOps(self.dtype, weight_format, deterministic, self.launch, self.arch)


def setting_of(options: Options, num_layers: int = 1) -> Setting:
    """Return real shapes, or tiny ones. The interpreter's products in bfloat16 are wrong, so it computes in float16."""
    device, arch, launch = torch.device(options.device), HOPPER, launch_on_device
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float16
    if options.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
        launch = launcher_for(arch, options.early)
    if options.tiny:
        config = replace(PRESETS["tiny"], num_layers=num_layers, vocab_size=300)
        return Setting(device, dtype, config, (1, 3, 20), (1, 40), launch, arch)
    config = replace(PRESETS["mixtral-8x7b"], num_layers=num_layers)
    return Setting(device, dtype, config, (1, 8, 17, 64, 200, 700), (1, 255, 4096, 32768), launch, arch)
