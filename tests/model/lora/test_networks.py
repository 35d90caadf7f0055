"""Rows with LoRA adapters: merged weights' logits on every backend; on the native one the same bits in any batch."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.config_file import load_config
from model.config import ModelConfig
from model.dummy_weights import random_model as dummy_model
from model.forward_batch import ForwardBatch, HiddenRows
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.lora.adapter import Adapter
from model.lora.load import load_adapter
from model.lora.rows import AdapterRows
from model.mixtral import Mixtral
from model.mixtral_native import NativeMixtral
from model.ops.quantization import Quantization
from model.ops.reference.ops import ReferenceOps
from model.pack.load import load_pack, load_pack_in_part
from tests.support.checkpoints.adapters import merge, random_tensors, save_adapter
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.checkpoints.packs import write_pack
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.native_cases import DTYPES, ISAS, name_of, native
from tests.support.kernels.paged import CPU, Running, make_batch

BLOCK_SIZE = 4
MOE = Shape(num_experts=4, num_layers=2, dim=40, hidden_dim=72, num_heads=5, num_kv_heads=1, head_dim=12)
SHAPES = {
    "experts": MOE,
    "panels of 32": replace(MOE, dim=64, hidden_dim=96, num_heads=4, num_kv_heads=2, head_dim=16),
    "dense": replace(MOE, num_experts=0),
}

Part = tuple[Running, int, Adapter | None]  # a sequence, the number of its next positions, its adapter


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _batch(parts: list[Part]) -> ForwardBatch:
    """Build the batch of these parts; without an adapter in any of them, as if there were no adapters."""
    batch = make_batch([(run, length) for run, length, _ in parts], BLOCK_SIZE)
    distinct = list(dict.fromkeys(adapter for _, _, adapter in parts if adapter is not None))
    if not distinct:
        return batch
    rows = [-1 if adapter is None else distinct.index(adapter) for _, length, adapter in parts for _ in range(length)]
    return replace(batch, adapters=AdapterRows(tuple(distinct), torch.tensor(rows)))


def _logits(model: Mixtral, token_ids: list[int], adapter: Adapter | None, chunk: int = 7) -> Tensor:
    """Return the logits of all positions of one sequence, [T, V]."""
    pool = KvPool(model.config, 20, BLOCK_SIZE, name_of(model.weights.embedding.dtype), CPU)
    run, found = Running(token_ids, list(range(1, 20))), []
    while run.num_computed < len(token_ids):
        length = min(chunk, len(token_ids) - run.num_computed)
        found.append(model.forward(_batch([(run, length, adapter)]), pool))
        run.num_computed += length
    return torch.cat(found)


def _load(path: Path, dtype: torch.dtype = torch.float32, ops: object = None) -> Mixtral:
    config = load_config(path)[0]
    return load_model(path, config, ops or ReferenceOps(), LoadOptions(dtype, CPU))  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("name", SHAPES)
def test_an_adapter_gives_the_logits_of_merged_weights(name: str, share: float, tmp_path: Path) -> None:
    """The merge adds scale * B A to the weights in float64. On the reference backend, and on the native one op by op
    and in one call."""
    path = save_in_layout(random_model(SHAPES[name]), tmp_path / "model")
    base, native_base = _load(path), _load(path, ops=native(ISAS[-1], 2))
    folder = save_adapter(
        tmp_path / "adapter", random_tensors(base.config, seed=1, share=share), lora_alpha=3, use_rslora=share < 1
    )
    adapter = load_adapter(folder, base.config)
    token_ids = [random.Random(0).randrange(101) for _ in range(30)]
    without = _logits(base, token_ids, None)
    merge(path, folder)
    expected = _logits(_load(path), token_ids, None)
    assert (expected - without).abs().max() > 0.1, "the adapter changes nothing"
    for model in (base, native_base, NativeMixtral(native_base, native(ISAS[-1], 2))):
        torch.testing.assert_close(_logits(model, token_ids, adapter), expected, rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(_logits(model, token_ids, None), without, rtol=1e-4, atol=2e-4)


def _adapters(config: ModelConfig, folder: Path) -> list[Adapter]:
    """Return adapters of several ranks and types; the second has terms of few matrices."""
    kinds = [(4, torch.float32, 1.0), (5, torch.bfloat16, 0.3), (16, torch.bfloat16, 1.0)]
    return [
        load_adapter(save_adapter(folder / str(i), random_tensors(config, rank, i, dtype, share)), config)
        for i, (rank, dtype, share) in enumerate(kinds)
    ]


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_gets_the_same_bits_alone_and_among_rows_of_other_adapters(
    isa: str, dtype: torch.dtype, quantization: Quantization, tmp_path: Path
) -> None:
    """Alone on one thread and in other chunks; rows without an adapter as in a network that has none."""
    shape = SHAPES["experts" if quantization == "none" else "panels of 32"]
    path = save_in_layout(random_model(shape), tmp_path / "model")
    models = [_load(path, dtype, native(isa, threads, quantization)) for threads in (1, 2)]
    alone, together = (
        NativeMixtral(model, native(isa, t, quantization)) for t, model in zip((1, 2), models, strict=True)
    )
    adapters = _adapters(alone.config, tmp_path)
    rng = random.Random(3)
    chosen = [None, *adapters, None, *adapters, adapters[0]]
    runs = [Running([rng.randrange(101) for _ in range(24)], list(range(1 + 6 * i, 7 + 6 * i))) for i in range(9)]
    pool = KvPool(alone.config, 60, BLOCK_SIZE, name_of(dtype), CPU)
    while any(run.num_computed < 24 for run in runs):
        parts: list[Part] = [
            (run, min(rng.choice((1, 1, 2, 9)), 24 - run.num_computed), adapter)
            for run, adapter in zip(runs, chosen, strict=True)
            if run.num_computed < 24 and rng.random() < 0.8
        ]
        if not parts:
            continue
        logits = together.forward(_batch(parts), pool).split([length for _, length, _ in parts])
        for (run, length, _), rows in zip(parts, logits, strict=True):
            run.logits.append(rows)
            run.num_computed += length
    for run, adapter in zip(runs, chosen, strict=True):
        assert torch.equal(torch.cat(run.logits), _logits(alone, run.token_ids, adapter, chunk=5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_one_call_gives_the_bits_of_separate_ops(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also where logits of some rows only are computed, and op by op where hidden states are returned."""
    path = save_in_layout(random_model(SHAPES[name]), tmp_path / "model")
    ops = native(ISAS[-1], 2)
    model = _load(path, dtype, ops)
    one_call = NativeMixtral(model, ops)
    adapters = _adapters(model.config, tmp_path)
    runs = [Running(list(range(3, 20)), list(range(1 + 5 * i, 6 + 5 * i))) for i in range(4)]
    parts: list[Part] = list(zip(runs, (9, 1, 2, 17), [adapters[0], None, *adapters[1:]], strict=True))
    batch = replace(_batch(parts), logit_rows=torch.tensor([28, 3, 9, 11]))
    pools = [KvPool(model.config, 21, BLOCK_SIZE, name_of(dtype), CPU) for _ in range(3)]
    hidden = HiddenRows(torch.tensor([28]), torch.empty(1, model.config.dim))
    logits = one_call.forward(batch, pools[0])
    assert torch.equal(logits, model.forward(batch, pools[1]))
    assert torch.equal(logits, one_call.forward(replace(batch, hidden=hidden), pools[2]))
    assert torch.equal(pools[0].k, pools[1].k)
    assert torch.equal(pools[0].v, pools[1].v)


@pytest.mark.parametrize("name", SHAPES)
def test_lossless_weights_give_the_bits_of_bfloat16(name: str, tmp_path: Path) -> None:
    path = save_in_layout(random_model(SHAPES[name]), tmp_path / "model")
    plain, lossless = (
        NativeMixtral(_load(path, torch.bfloat16, ops), ops)
        for ops in (native(ISAS[-1], 2, kind) for kind in ("none", "lossless"))
    )
    for adapter in (None, *_adapters(plain.config, tmp_path)):
        logits = [_logits(network, list(range(3, 27)), adapter, chunk=5) for network in (plain, lossless)]
        assert torch.equal(*logits)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_experts_that_are_read_from_a_pack_in_parts_give_the_same_bits(
    quantization: Quantization, tmp_path: Path
) -> None:
    ops = native(ISAS[-1], 2)
    config = replace(
        Heads(4, 2, 16).config, num_layers=2, num_experts=4, experts_per_token=2, hidden_dim=72, dim=48, vocab_size=32
    )
    weights = dummy_model(config, torch.bfloat16, CPU, native(ISAS[-1], 2, quantization), seed=0).weights
    folder = write_pack(weights, config, tmp_path / "pack", quantization)
    resident = load_pack(folder, config, ops, "map", lambda done, total: None).network
    stored = load_pack_in_part(folder, config, ops, "map", 3, lambda done, total: None).network
    adapters = _adapters(config, tmp_path)
    runs = [Running(list(range(3, 20)), list(range(1 + 5 * i, 6 + 5 * i))) for i in range(4)]
    batch = _batch(list(zip(runs, (9, 1, 2, 17), [adapters[0], None, *adapters[1:]], strict=True)))
    logits = [
        NativeMixtral(network, ops).forward(batch, KvPool(config, 21, BLOCK_SIZE, "bfloat16", CPU))
        for network in (resident, stored)
    ]
    assert torch.equal(*logits)
