"""Ranks that each have a part of every matrix compute the bits of a single rank: logits, expert ids, finite flags."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.checkpoint import read_config
from model.config import ModelConfig
from model.forward_batch import ForwardBatch, GateRows, HiddenRows, Routing
from model.group import ALONE, Group
from model.kv_format import KvDtype
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.mixtral import Mixtral
from model.mixtral_native import NativeMixtral
from model.ops.interface import Ops
from model.ops.native.ops import NativeOps
from model.ops.quantization import Quantization
from model.ops.reference.ops import ReferenceOps
from tests.support.checkpoints.gguf import GgufShape, Type, iq2_m, q4_k_m, write_gguf
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.hosts.ranks import on_each_rank, shared_groups, socket_groups
from tests.support.kernels.native_cases import DTYPES, ISAS, LIBRARY, name_of
from tests.support.kernels.paged import CPU, Running, make_batch

BLOCK_SIZE = 4
# 5 panels of hidden outputs and 4 of the vocabulary, the last ones not whole: ranks have uneven parts.
SPARSE = Shape(dim=128, hidden_dim=144, num_heads=8, num_kv_heads=4, head_dim=16, num_experts=4, vocab_size=101)
DENSE = replace(SPARSE, num_experts=0, tied=True, window=9)


@dataclass(frozen=True)
class Case:
    """A checkpoint, and the settings that serve it."""

    path: Path
    dtype: torch.dtype = torch.float32
    quantization: Quantization = "none"
    isa: str = ISAS[-1]
    kv_dtype: KvDtype | None = None  # None: as computed
    in_one_call: bool = True  # of the library, or op by op


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_in_layout(random_model(SPARSE), tmp_path_factory.mktemp("sparse"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_two_ranks_give_the_bits_of_one(sparse: Path, isa: str, dtype: torch.dtype, quantization: Quantization) -> None:
    case = Case(sparse, dtype, quantization, isa)
    _assert_same(_on_ranks(case, 2), _alone(case))


def test_two_ranks_with_lossless_weights_give_the_bits_of_one_without(sparse: Path) -> None:
    case = Case(sparse, torch.bfloat16, "lossless")
    _assert_same(_on_ranks(case, 2), _alone(Case(sparse, torch.bfloat16)))


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_four_ranks_give_the_bits_of_one(sparse: Path, dtype: torch.dtype, in_one_call: bool) -> None:
    case = Case(sparse, dtype, in_one_call=in_one_call)
    _assert_same(_on_ranks(case, 4), _alone(case))


def test_ranks_give_the_bits_of_one_over_int8_caches(sparse: Path) -> None:
    case = Case(sparse, torch.bfloat16, kv_dtype="int8")
    _assert_same(_on_ranks(case, 2), _alone(case))


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_ranks_give_the_bits_of_one_of_a_dense_network_with_a_tied_head(
    tmp_path: Path, quantization: Quantization
) -> None:
    case = Case(save_in_layout(random_model(DENSE), tmp_path), torch.bfloat16, quantization)
    _assert_same(_on_ranks(case, 2), _alone(case))


def test_ranks_cut_experts_that_share_a_tensor(sparse: Path, tmp_path: Path) -> None:
    fused = save_in_layout(random_model(SPARSE), tmp_path, fused=True)
    _assert_same(_on_ranks(Case(fused), 2), _alone(Case(sparse)))


@pytest.mark.parametrize("type_of", [q4_k_m, iq2_m])
@pytest.mark.parametrize("tied", [False, True])
def test_ranks_cut_the_blocks_of_a_gguf_file(tmp_path: Path, tied: bool, type_of: Callable[[str], Type]) -> None:
    """Q and K are in llama.cpp's order of rows, and the matrices have block formats of their own."""
    write_gguf(tmp_path / "a.gguf", GgufShape(tied=tied), type_of)
    case = Case(tmp_path / "a.gguf")
    _assert_same(_on_ranks(case, 2), _alone(case))


@pytest.mark.parametrize("in_one_call", [True, False])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("num_experts", [4, 0])
def test_ranks_exchange_float32_rows_beside_bfloat16_attention(
    tmp_path: Path, num_experts: int, size: int, in_one_call: bool
) -> None:
    case = Case(_wide_gguf(tmp_path, num_experts), torch.bfloat16, in_one_call=in_one_call)
    assert _load(case, ALONE).weights.norm.dtype == torch.float32
    _assert_same(_on_ranks(case, size), _alone(replace(case, in_one_call=True)))


@pytest.mark.parametrize("isa", ISAS)
def test_ranks_exchange_float32_rows_on_every_instruction_set(tmp_path: Path, isa: str) -> None:
    case = Case(_wide_gguf(tmp_path, 4), torch.bfloat16, isa=isa, kv_dtype="int8")
    _assert_same(_on_ranks(case, 2), _alone(case))


def _wide_gguf(folder: Path, num_experts: int) -> Path:
    """Write a file whose first layer is all in blocks, while w2 and output projection of the second are bfloat16."""
    narrow = ("blk.1.ffn_down", "blk.1.attn_output")
    shape = GgufShape(num_layers=2, num_heads=8, num_kv_heads=4, num_experts=num_experts)
    write_gguf(folder / "a.gguf", shape, lambda name: Type.BF16 if name.startswith(narrow) else q4_k_m(name))
    return folder / "a.gguf"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("quantization", "in_one_call"), [("none", True), ("int8", True), ("int4", True), ("int8", False)]
)
def test_ranks_that_share_no_memory_give_the_bits_of_one(
    sparse: Path, dtype: torch.dtype, quantization: Quantization, in_one_call: bool
) -> None:
    case = Case(sparse, dtype, quantization, in_one_call=in_one_call)
    _assert_same(_on_hosts(case, 2), _alone(case))


def test_four_ranks_that_share_no_memory_give_the_bits_of_one(sparse: Path) -> None:
    case = Case(sparse, torch.bfloat16, kv_dtype="int8")
    _assert_same(_on_hosts(case, 4), _alone(case))


@pytest.mark.parametrize("num_experts", [4, 0])
def test_ranks_that_share_no_memory_exchange_float32_rows(tmp_path: Path, num_experts: int) -> None:
    case = Case(_wide_gguf(tmp_path, num_experts), torch.bfloat16)
    _assert_same(_on_hosts(case, 2), _alone(case))


def test_the_reference_backend_agrees_with_itself(sparse: Path) -> None:
    """Only near: torch's own products may take another order for another number of outputs."""
    config = read_config(sparse)[0]

    def load(group: Group) -> Mixtral:
        return load_model(sparse, config, ReferenceOps(), LoadOptions(torch.float32, CPU, group=group))

    whole = _steps(load(ALONE), "float32")
    with shared_groups(2) as groups:
        for parts in on_each_rank(groups, lambda group: _steps(load(group), "float32")):
            for ours, theirs in zip(parts, whole, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def _load(case: Case, group: Group) -> Mixtral:
    ops = NativeOps(LIBRARY, 1, case.isa, case.quantization)
    model = _loaded(case, read_config(case.path)[0], ops, group)
    return NativeMixtral(model, ops) if case.in_one_call else model


def _loaded(case: Case, config: ModelConfig, ops: Ops, group: Group) -> Mixtral:
    progress: list[tuple[int, int]] = []
    on_progress: Callable[[int, int], None] = lambda done, total: progress.append((done, total))  # noqa: E731
    model = load_model(case.path, config, ops, LoadOptions(case.dtype, CPU, on_progress, group=group))
    assert progress[-1][0] == progress[-1][1], "progress ends at all bytes of the part"
    return model


def _alone(case: Case) -> list[Tensor]:
    return _steps(_load(case, ALONE), case.kv_dtype or name_of(case.dtype))


def _on_ranks(case: Case, size: int) -> list[list[Tensor]]:
    with shared_groups(size) as groups:
        return on_each_rank(groups, lambda group: _steps(_load(case, group), case.kv_dtype or name_of(case.dtype)))


def _on_hosts(case: Case, size: int) -> list[list[Tensor]]:
    """Compute on ranks that are connected by a network."""
    with socket_groups(size) as groups:
        return on_each_rank(groups, lambda group: _steps(_load(case, group), case.kv_dtype or name_of(case.dtype)))


def _assert_same(ranks: list[list[Tensor]], whole: list[Tensor]) -> None:
    for rank in ranks:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(rank, whole, strict=True))


def _steps(model: Mixtral, kv_dtype: KvDtype) -> list[Tensor]:
    """Compute prompts in chunks, decode, and steps that need gates or hidden states; return all that is written."""
    config = model.config
    pool = KvPool(model.group.cut.with_own_heads(config), 30, BLOCK_SIZE, kv_dtype, CPU)
    runs = [Running([(7 * i + 3 * s) % 97 for i in range(30)], list(range(1 + 8 * s, 9 + 8 * s))) for s in range(3)]
    results = []
    for step, lengths in enumerate([(9, 1, 0), (1, 13, 5), (1, 1, 1), (2, 1, 1)]):
        batch = make_batch([(run, length) for run, length in zip(runs, lengths, strict=True) if length], BLOCK_SIZE)
        num_rows = len(batch.token_ids)
        finite, routing = torch.ones(num_rows, dtype=torch.bool), _routing(config, num_rows)
        hidden = HiddenRows(torch.tensor([0, num_rows - 1]), torch.zeros(2, config.dim)) if step == 3 else None
        logit_rows = torch.empty(0, dtype=torch.int64) if step == 1 else torch.arange(0, num_rows, 2)
        gates = _gates(config) if step == 2 and config.num_experts else None
        full = replace(batch, logit_rows=logit_rows, finite=finite, routing=routing, hidden=hidden, gates=gates)
        results += [model.forward(full, pool), finite, *_written(full)]
        for run, length in zip(runs, lengths, strict=True):
            run.num_computed += length
    return results


def _written(batch: ForwardBatch) -> list[Tensor]:
    hidden = [batch.hidden.states] if batch.hidden else []
    hidden += [batch.gates.logits] if batch.gates else []
    return hidden + ([batch.routing.expert_ids] if batch.routing else [])


def _gates(config: ModelConfig) -> GateRows:
    return GateRows(torch.tensor([0, 2]), torch.zeros(config.num_layers, 2, config.num_experts))


def _routing(config: ModelConfig, num_rows: int) -> Routing | None:
    """Rows with one expert and with three; the second half may not use the first expert."""
    if not config.num_experts:
        return None
    k = torch.tensor([1 + 2 * (row % 2) for row in range(num_rows)], dtype=torch.int32)
    masks = torch.ones(2, config.num_layers, config.num_experts, dtype=torch.bool)
    masks[1, :, 0] = False
    mask_rows = torch.tensor([int(row >= num_rows // 2) for row in range(num_rows)])
    return Routing(k, masks, mask_rows, torch.empty(config.num_layers, num_rows, 3, dtype=torch.int32))
