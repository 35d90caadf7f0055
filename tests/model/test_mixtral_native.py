"""A step in one call of the library gives the bits of Mixtral.forward over the same backend."""

import random
import weakref
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from model.config import ModelConfig
from model.dummy_weights import random_model
from model.forward_batch import ForwardBatch, GateRows, Routing
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.mixtral import Mixtral, uniform_routing
from model.mixtral_native import NativeMixtral
from model.ops.quantization import Quantization
from tests.support.checkpoints.block_matrices import random_block_model, with_sums_in
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.native_cases import DTYPES, ISAS, name_of, native
from tests.support.kernels.paged import CPU, Running, make_batch

BLOCK_SIZE = 4
SPARSE = replace(Heads(4, 2, 16, 40).config, num_layers=3, num_experts=5, experts_per_token=2, hidden_dim=72, dim=48)
DENSE = replace(Heads(3, 1, 24).config, num_layers=2, dim=40, vocab_size=75)

pytestmark = [pytest.mark.parametrize("isa", ISAS), pytest.mark.parametrize("dtype", DTYPES, ids=str)]


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_one_call_gives_the_bits_of_separate_ops(
    isa: str, dtype: torch.dtype, config: ModelConfig, quantization: Quantization
) -> None:
    """Compares logits, expert ids of every row, and the caches."""
    model = random_model(config, dtype, CPU, native(isa, 2, quantization), seed=0)
    _compare(model, NativeMixtral(model, native(isa, 2, quantization)), name_of(dtype))


def test_one_call_gives_the_bits_of_separate_ops_over_int8_caches(isa: str, dtype: torch.dtype) -> None:
    model = random_model(SPARSE, dtype, CPU, native(isa), seed=1)
    _compare(model, NativeMixtral(model, native(isa)), "int8")


@pytest.mark.parametrize("num_experts", [4, 0])
def test_one_call_gives_the_bits_of_separate_ops_where_each_matrix_has_its_format(
    isa: str, dtype: torch.dtype, num_experts: int
) -> None:
    heads = Heads(4, 2, 64).config
    config = replace(heads, num_layers=2, num_experts=num_experts, experts_per_token=2, hidden_dim=256, dim=256)
    model = random_block_model(config, dtype, native(isa, 2))
    for kv_dtype in (name_of(dtype), "int8"):
        _compare(model, NativeMixtral(model, native(isa, 2)), kv_dtype)


@pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])
def test_one_call_gives_the_bits_of_separate_ops_where_sums_are_wider_than_weights(
    isa: str, dtype: torch.dtype, config: ModelConfig
) -> None:
    """As in a network with some of its matrices in blocks and the others in bfloat16."""
    wide = _with_wide_sums(random_model(config, dtype, CPU, native(isa, 2), seed=3), isa)
    wide.weights.embedding[5] *= 1e-5  # some numbers become subnormal ones of float16
    for kv_dtype in (name_of(dtype), "int8"):
        _compare(wide, NativeMixtral(wide, native(isa, 2)), kv_dtype)


@pytest.mark.parametrize("has_wide_sums", [False, True])
def test_one_call_finds_the_rows_with_nan(isa: str, dtype: torch.dtype, has_wide_sums: bool) -> None:
    model = random_model(SPARSE, dtype, CPU, native(isa), seed=2)
    if has_wide_sums:
        model = _with_wide_sums(model, isa)
    model.weights.embedding[7] = torch.nan
    clean, faulty = Running([1, 2, 3, 4], [1]), Running([1, 2, 7, 3, 4], [2, 3])
    found = []
    for network in (model, NativeMixtral(model, native(isa))):
        batch = make_batch([(clean, 4), (faulty, 5)], BLOCK_SIZE)
        finite = torch.ones(9, dtype=torch.bool)
        network.forward(replace(batch, finite=finite), KvPool(SPARSE, 10, BLOCK_SIZE, name_of(dtype), CPU))
        found.append(finite.tolist())
    assert found[0] == found[1]
    assert found[0][:4] == [True] * 4, "rows of another request are affected"
    assert found[0][6:] == [False] * 3, "the row with NaN and those that see it"


def test_a_batch_with_new_numbers_gives_the_bits_of_a_new_batch(isa: str, dtype: torch.dtype) -> None:
    """A decode step may have the batch of the one before, with new numbers in its tensors; prompts come between."""
    model = random_model(SPARSE, dtype, CPU, native(isa), seed=4)
    kept, fresh = (NativeMixtral(model, native(isa)) for _ in range(2))
    pools = [KvPool(SPARSE, 30, BLOCK_SIZE, name_of(dtype), CPU) for _ in range(2)]
    rng = random.Random(4)
    runs = [Running([rng.randrange(32) for _ in range(40)], list(range(1 + 10 * i, 11 + 10 * i))) for i in range(2)]
    batch: Any = None
    for step in range(12):
        lengths = [3, 2] if step in (0, 6) else [1, 1]
        new: Any = make_batch(list(zip(runs, lengths, strict=True)), BLOCK_SIZE)
        if lengths == [1, 1]:
            new = replace(new, routing=uniform_routing(SPARSE, 2, CPU))
            batch = batch or _copy_of(new)
            _overwrite(batch, new)
            assert torch.equal(kept.forward(batch, pools[0]), fresh.forward(new, pools[1]))
            assert torch.equal(batch.routing.expert_ids, new.routing.expert_ids)
        else:
            assert torch.equal(kept.forward(new, pools[0]), fresh.forward(new, pools[1]))
        for run, length in zip(runs, lengths, strict=True):
            run.num_computed += length


def test_batches_in_turns_keep_their_arguments_and_their_places_for_logits(isa: str, dtype: torch.dtype) -> None:
    """Two batches share the memory of their logits, as those of steps with drafts do."""
    model = random_model(SPARSE, dtype, CPU, native(isa), seed=6)
    kept, fresh = (NativeMixtral(model, native(isa)) for _ in range(2))
    pools = [KvPool(SPARSE, 10, BLOCK_SIZE, name_of(dtype), CPU) for _ in range(2)]
    memory = torch.empty(5, SPARSE.vocab_size)
    runs = Running([1, 2, 3], [1]), Running([4, 5, 6, 7, 8], [2, 3])
    batches = [make_batch([(run, len(run.token_ids))], BLOCK_SIZE) for run in runs]
    batches = [replace(batch, logits=memory[: len(batch.logit_rows)]) for batch in batches]
    for batch in [*batches, *batches]:
        logits = kept.forward(batch, pools[0])
        assert logits is batch.logits
        assert torch.equal(logits, fresh.forward(replace(batch, logits=None), pools[1]))


def test_logits_of_a_prompt_are_freed_with_it(isa: str, dtype: torch.dtype) -> None:
    network = NativeMixtral(random_model(SPARSE, dtype, CPU, native(isa), seed=5), native(isa))
    pool = KvPool(SPARSE, 10, BLOCK_SIZE, name_of(dtype), CPU)
    logits = network.forward(make_batch([(Running([1, 2, 3], [1]), 3)], BLOCK_SIZE), pool)
    reference = weakref.ref(logits)
    del logits
    assert reference() is None


def _with_wide_sums(model: Mixtral, isa: str) -> Mixtral:
    """Return the network with float32 between its layers and a float16 embedding."""
    weights = with_sums_in(torch.float32, model.weights)
    weights = replace(weights, embedding=weights.embedding.to(torch.float16))
    return Mixtral(model.config, weights, native(isa, 2))


def _compare(model: Mixtral, native_model: NativeMixtral, kv_dtype: KvDtype) -> None:
    """Compare steps of three sequences over two equal pools; the last two steps use new pools."""
    rng = random.Random(0)
    for num_steps in (8, 2):
        sequences = [[rng.randrange(32) for _ in range(90)] for _ in range(3)]
        runs = [Running(ids, list(range(1 + 23 * i, 24 + 23 * i))) for i, ids in enumerate(sequences)]
        pools = [KvPool(model.config, 70, BLOCK_SIZE, kv_dtype, CPU) for _ in range(2)]
        for _ in range(num_steps):
            lengths = [rng.choice((1, 1, 1, 2, 9)) for _ in runs]
            batch = _with_logit_rows(make_batch(list(zip(runs, lengths, strict=True)), BLOCK_SIZE), rng)
            ours, theirs = (_with_routing(batch, model.config, random.Random(len(batch.positions))) for _ in range(2))
            assert torch.equal(native_model.forward(ours, pools[0]), model.forward(theirs, pools[1]))
            if ours.routing is not None and theirs.routing is not None:
                assert torch.equal(ours.routing.expert_ids, theirs.routing.expert_ids)
            if ours.gates is not None and theirs.gates is not None:
                assert torch.equal(ours.gates.logits, theirs.gates.logits)
            assert torch.equal(pools[0].k, pools[1].k)
            assert torch.equal(pools[0].v, pools[1].v)
            for run, length in zip(runs, lengths, strict=True):
                run.num_computed += length


def _copy_of(part: Any) -> Any:
    """Return a batch, or a part of one, with tensors of its own."""
    if isinstance(part, torch.Tensor):
        return part.clone()
    if not is_dataclass(part) or isinstance(part, type):
        return part
    return replace(part, **{field.name: _copy_of(getattr(part, field.name)) for field in fields(part)})


def _overwrite(part: Any, new: Any) -> None:
    """Write the numbers of another batch of the same shape to the batch's tensors."""
    if isinstance(part, torch.Tensor):
        part.copy_(new)
    elif is_dataclass(part):
        for field in fields(part):
            _overwrite(getattr(part, field.name), getattr(new, field.name))


def _with_logit_rows(batch: ForwardBatch, rng: random.Random) -> ForwardBatch:
    """Request logits of no row, of a few in any order, or of all."""
    num_rows = len(batch.logit_rows)
    logit_rows = rng.sample(range(num_rows), rng.choice((0, 1, num_rows // 2, num_rows)))
    return replace(batch, logit_rows=torch.tensor(logit_rows, dtype=torch.int64))


def _with_routing(batch: ForwardBatch, config: ModelConfig, rng: random.Random) -> ForwardBatch:
    """Add reported gates to some batches; no routing, or a k for each row and maybe two masks."""
    num_rows = len(batch.positions)
    if config.num_experts and rng.random() < 0.5:
        rows = torch.tensor(rng.sample(range(num_rows), rng.randint(1, num_rows)))
        logits = torch.full((config.num_layers, len(rows), config.num_experts), torch.nan)
        batch = replace(batch, gates=GateRows(rows, logits))
    if not config.num_experts or rng.random() < 0.3:
        return batch
    k = torch.tensor([rng.randint(1, 3) for _ in range(num_rows)], dtype=torch.int32)
    masks = torch.ones(2, config.num_layers, config.num_experts, dtype=torch.bool)
    masks[1, :, rng.randrange(config.num_experts)] = False
    has_masks = rng.random() < 0.7
    mask_rows = torch.tensor([rng.randint(0, 1) for _ in range(num_rows)])
    expert_ids = torch.full((config.num_layers, num_rows, 3), -2, dtype=torch.int32)
    routing = Routing(k, masks if has_masks else None, mask_rows if has_masks else None, expert_ids)
    return replace(batch, routing=routing)
