"""Stage sweep: the experts with other tile sizes than the backend's, and torch's grouped product as a yardstick."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from model.bench.roofline import measure, seconds_of
from model.mixtral import uniform_routing
from model.ops.interface import FfnWeights, RoutingRequest
from model.ops.triton.gemm_tiles import PLAIN, WORDS, Tiling
from model.ops.triton.moe import experts
from model.ops.triton.ops import TritonMoe
from model.ops.triton.packed_weights import WeightFormat
from model.ops.triton.topk_routing import route
from tests.gpu.first_light.result import Options, Row
from tests.gpu.first_light.shapes import Setting, setting_of

ROWS = (1, 8, 64, 256, 2048, 8192)
FORMATS: tuple[WeightFormat, ...] = ("plain", "fp8")


def time_tiles(options: Options) -> list[Row]:
    """Time the experts for each number of rows and tiling; mark the backend's own choice."""
    torch.set_default_device(options.device)
    setting = setting_of(options)
    return [row for weight_format in FORMATS for row in _time(setting, weight_format, options.tiny)]


def _time(setting: Setting, weight_format: WeightFormat, tiny: bool) -> Iterator[Row]:
    config = setting.config
    ops = setting.ops(weight_format)
    packed = ops.pack_moe(
        _random(setting, config.num_experts, config.dim), (_ffn(setting) for _ in range(config.num_experts))
    )
    bandwidth = measure(ops, setting.device).bytes_per_s
    for count in (2,) if tiny else ROWS:
        x = torch.randn(count, config.dim).to(setting.dtype)
        own = ops._tiling(2 * count * config.experts_per_token // config.num_experts, packed.experts.w2)
        tilings = [own] if tiny else dict.fromkeys([own, *_candidates(weight_format, own)])
        for tiling in tilings:
            yield _timed(setting, packed, x, tiling, bandwidth, f"{weight_format} {count}", tiling == own)
    if weight_format == "plain" and setting.device.type == "cuda":
        yield from (_grouped(setting, packed, count) for count in ROWS)


def _candidates(weight_format: WeightFormat, own: Tiling) -> Iterator[Tiling]:
    """Yield tilings near the backend's own: other heights, widths and depths."""
    table = PLAIN if weight_format == "plain" else WORDS
    near = [tiling for rows, tiling in table.items() if own.rows // 2 <= rows <= own.rows * 2]
    for tiling, factor, stages in itertools.product(near, (1, 2), (0, 1)):
        outputs = tiling.outputs * factor
        yield replace(
            tiling, outputs=outputs, num_warps=8 if outputs >= 128 else 4, num_stages=tiling.num_stages - stages
        )


def _timed(
    setting: Setting, packed: TritonMoe, x: Tensor, tiling: Tiling, bandwidth: float, case: str, is_own: bool
) -> Row:
    config = setting.config
    routing = uniform_routing(config, len(x), setting.device)
    request = RoutingRequest(routing.experts_per_token, None, routing.expert_ids[0])
    tiles = route(setting.launch, x, packed.gate, request, tiling.rows)
    text = f"{tiling.rows}x{tiling.outputs}x{tiling.inputs} {tiling.num_warps} warps {tiling.num_stages} stages"
    row: Row = {"case": case, "tiling": text, "own": is_own}
    try:
        seconds = seconds_of([lambda: experts(setting.launch, x, packed.experts, tiles, tiling)], setting.device)
    except Exception as error:  # noqa: BLE001 (too much shared memory, for one)
        return row | {"failed": f"{type(error).__name__}: {str(error)[:60]}", "ok": not is_own}
    num_chosen = int((torch.bincount(request.expert_ids.flatten()) > 0).sum())
    values = packed.experts.w13.values.nbytes + packed.experts.w2.values.nbytes
    operations = 6.0 * len(x) * config.experts_per_token * config.dim * config.hidden_dim
    share = values * num_chosen / config.num_experts / bandwidth / seconds
    return row | {"microseconds": 1e6 * seconds, "share": share, "teraops_per_s": operations / seconds / 1e12}


def _grouped(setting: Setting, packed: TritonMoe, count: int) -> Row:
    """Time torch's grouped product of gate and up, with rows spread evenly over the experts."""
    config = setting.config
    weights = packed.experts.w13.values.transpose(1, 2)  # [E, D, 2F]
    pairs = max(config.num_experts, count * config.experts_per_token)
    x = torch.randn(pairs, config.dim).to(setting.dtype)
    ends = (torch.arange(1, config.num_experts + 1) * pairs // config.num_experts).to(torch.int32)
    try:
        seconds = seconds_of([lambda: torch._grouped_mm(x, weights, ends)], setting.device)
    except Exception as error:  # noqa: BLE001 (a yardstick only)
        return {"case": f"torch grouped gate-up {count}", "failed": f"{type(error).__name__}: {str(error)[:60]}"}
    operations = 4.0 * pairs * config.dim * config.hidden_dim
    return {
        "case": f"torch grouped gate-up {count}",
        "microseconds": 1e6 * seconds,
        "teraops_per_s": operations / seconds / 1e12,
    }


def _random(setting: Setting, outputs: int, inputs: int) -> Tensor:
    return torch.randn(outputs, inputs).mul_(inputs**-0.5).to(setting.dtype)


def _ffn(setting: Setting) -> FfnWeights:
    dim, hidden = setting.config.dim, setting.config.hidden_dim
    return FfnWeights(_random(setting, hidden, dim), _random(setting, hidden, dim), _random(setting, dim, hidden))
