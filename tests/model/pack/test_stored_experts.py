"""A network whose experts are read when a step needs them computes the bits of one whose experts are all in memory."""

import ctypes
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from model.kv_pool import KvPool
from model.mixtral_native import NativeMixtral
from model.ops.native.expert_store import ExpertReadError
from model.ops.native.ops import NativeOps
from model.ops.quantization import Quantization
from model.pack.load import load_pack_in_part
from model.pack.weight_memory import WeightMemory
from tests.support.checkpoints.block_matrices import random_block_model
from tests.support.checkpoints.packs import write_pack
from tests.support.conditions import wait_until
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.native_cases import ISAS, LIBRARY, native
from tests.support.kernels.paged import CPU
from tests.support.kernels.stored_experts import (
    BLOCK_SIZE,
    CONFIG,
    EIO,
    EVERY_BATCH,
    NUM_EXPERTS,
    WIDE,
    HeldReads,
    Pack,
    Source,
    assert_equal,
    batches,
    in_thread,
    logits_of,
    new_pack,
    nothing,
    routed,
    store_of,
)


@pytest.mark.parametrize("num_slots", range(2, 9))
def test_so_many_slots_give_the_bits_of_all_experts_in_memory(num_slots: int, pack: Pack) -> None:
    network = pack.stored(num_slots)
    assert_equal(logits_of(network, EVERY_BATCH), logits_of(pack.resident(), EVERY_BATCH))
    counts = store_of(network).counts()
    assert counts.misses > NUM_EXPERTS, "experts were read again"
    assert counts.hits or num_slots == 2, "the only two are passed through"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_format_and_instruction_set_gives_the_bits(
    isa: str, dtype: torch.dtype, quantization: Quantization, tmp_path: Path
) -> None:
    pack = new_pack(tmp_path / "p", replace(CONFIG, num_layers=2), dtype, quantization)
    sizes = [1, 5, 16]
    assert_equal(logits_of(pack.stored(3, isa), sizes), logits_of(pack.resident(isa), sizes))


def test_lossless_experts_give_the_bits_of_bfloat16(tmp_path: Path) -> None:
    config, sizes = replace(CONFIG, num_layers=2), [1, 5, 16]
    lossless = new_pack(tmp_path / "l", config, torch.bfloat16, "lossless")
    plain = new_pack(tmp_path / "p", config, torch.bfloat16)
    for network in (lossless.stored(3), lossless.resident()):
        assert_equal(logits_of(network, sizes), logits_of(plain.resident(), sizes))


def test_layers_with_experts_of_other_sizes_give_the_bits(tmp_path: Path) -> None:
    config = replace(Heads(4, 2, 64).config, num_layers=3, num_experts=4, experts_per_token=2, hidden_dim=256, dim=256)
    weights = random_block_model(config, torch.float32, native(ISAS[-1], 2)).weights
    pack = Pack(write_pack(weights, config, tmp_path / "p"), config)
    sizes = [1, 2, 8]
    assert_equal(logits_of(pack.stored(3), sizes), logits_of(pack.resident(), sizes))


@pytest.mark.parametrize("memory", ["map", "copy", "lock"])
def test_every_memory_of_the_other_weights_gives_the_bits(memory: WeightMemory, pack: Pack) -> None:
    sizes = [4, 4]
    assert_equal(logits_of(pack.stored(4, memory=memory), sizes), logits_of(pack.resident(), sizes))


def test_steps_op_by_op_use_the_store_too(pack: Pack) -> None:
    network, sizes = pack.stored(3), [2, 7]
    pool = KvPool(CONFIG, 5 * max(sizes) + 1, BLOCK_SIZE, "float32", CPU)
    by_op = [super(NativeMixtral, network).forward(batch, pool) for batch in batches(CONFIG, sizes)]
    assert store_of(network).counts().misses
    assert_equal(by_op, logits_of(pack.resident(), sizes))


def hits_of_steps(network: NativeMixtral, experts: set[int], num_steps: int) -> list[int]:
    """Compute steps that need these experts in every layer; return the experts that were in memory, by step."""
    pool, store, hits = KvPool(CONFIG, 6, BLOCK_SIZE, "float32", CPU), store_of(network), []
    for batch in batches(CONFIG, [1] * num_steps):
        before = store.counts().hits
        network.forward(routed(batch, experts), pool)
        hits.append(store.counts().hits - before)
    return hits


def test_a_cycle_through_more_experts_than_slots_finds_the_kept_ones_each_time(pack: Pack) -> None:
    """Every step needs all 32 experts. By the order of last use none would ever be found; 8 of 10 slots keep theirs."""
    network = pack.stored(10)
    hits = hits_of_steps(network, set(range(8)), 6)
    assert hits[0] == 0 and all(8 <= count <= 10 for count in hits[1:])
    counts = store_of(network).counts()
    assert counts.hits + counts.misses == 6 * NUM_EXPERTS
    slot_bytes = store_of(network).num_bytes // 10
    assert counts.read_bytes == counts.misses * slot_bytes and counts.waited_ns > 0


def test_experts_that_are_needed_more_often_take_the_places_of_kept_ones(pack: Pack) -> None:
    network = pack.stored(10)  # keeps 2 of each layer
    assert hits_of_steps(network, {0, 1}, 4)[-1] == 8
    assert hits_of_steps(network, {5, 6}, 2) == [0, 0]
    assert hits_of_steps(network, {5, 6}, 12)[-1] == 8


def test_if_all_experts_fit_each_is_read_once(pack: Pack) -> None:
    network = pack.stored(NUM_EXPERTS)
    assert hits_of_steps(network, set(range(8)), 3) == [0, NUM_EXPERTS, NUM_EXPERTS]
    assert store_of(network).counts().misses == NUM_EXPERTS


def test_experts_of_several_pieces_that_come_in_any_order_give_the_bits(wide: Pack) -> None:
    """Releases one held read at a time, in a random order."""
    held, found, rng = HeldReads(wide.file), list[Tensor](), random.Random(0)
    network = wide.stored(4, read=held.read)
    step = in_thread(lambda: found.extend(logits_of(network, [3, 1, 3])))
    while step.is_alive():
        if positions := held.wait(1, timeout_s=0.05):
            held.release(rng.choice(positions))
    assert_equal(found, logits_of(wide.resident(), [3, 1, 3]))


def test_reads_that_return_a_part_go_on_behind_it(wide: Pack) -> None:
    source = Source(wide.file, lambda number, position: 5000 + 3000 * (number % 300))
    assert_equal(logits_of(wide.stored(2, read=source.read), [2, 2]), logits_of(wide.resident(), [2, 2]))


def test_a_read_that_fails_once_is_repeated(wide: Pack) -> None:
    seen: set[int] = set()

    def fail_first(number: int, position: int) -> int | None:
        is_new = position not in seen
        seen.add(position)
        return -EIO if is_new else None

    network = wide.stored(2, read=Source(wide.file, fail_first).read)
    assert_equal(logits_of(network, [2, 2]), logits_of(wide.resident(), [2, 2]))


def test_an_expert_that_cannot_be_read_is_named_and_the_store_goes_on(wide: Pack) -> None:
    tensor = read_header(wide.folder).tensors["layers.1.experts.2"]
    broken = range(tensor.start, tensor.start + tensor.num_bytes)
    is_broken = True

    def fail(number: int, position: int) -> int | None:
        return -EIO if is_broken and position in broken else None

    network = wide.stored(3, read=Source(wide.file, fail).read)
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    for _ in range(2):
        message = rf"{WEIGHTS_NAME}: expert 2 of layer 1 cannot be read at byte \d+, twice: Input/output error$"
        with pytest.raises(ExpertReadError, match=message):
            network.forward(routed(batch, {0, 1, 2}, WIDE), pool)
    is_broken = False
    assert_equal(logits_of(network, [3, 3]), logits_of(wide.resident(), [3, 3]))


def test_a_file_that_was_cut_is_named(wide: Pack, tmp_path: Path) -> None:
    """The other weights are copied: a page of theirs that is lost ends the process."""
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / WEIGHTS_NAME).write_bytes(wide.file.read_bytes())
    network = Pack(cut, WIDE).stored(3, memory="copy")
    os.truncate(cut / WEIGHTS_NAME, read_header(wide.folder).tensors["layers.1.experts.1"].start)
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    with pytest.raises(ExpertReadError, match=r"expert [12] of layer 1 cannot be read .* the file ends before it$"):
        network.forward(routed(batch, {0, 1, 2}, WIDE), pool)


def release_and_wait_for_a_beat(held: HeldReads, position: int, counter: ctypes.c_uint64) -> None:
    before = counter.value
    held.release(position)
    wait_until(lambda: counter.value > before)


def test_waiting_for_a_slow_disk_advances_the_heartbeat_with_each_piece(wide: Pack) -> None:
    """Else a slow disk would look like an engine that hangs. No expert is complete meanwhile, so no kernel runs."""
    counter, ops, held = ctypes.c_uint64(0), NativeOps(LIBRARY, 1), HeldReads(wide.file)
    ops.set_heartbeat(counter)
    network = NativeMixtral(load_pack_in_part(wide.folder, WIDE, ops, "map", 2, nothing, held.read).network, ops)
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    step = in_thread(lambda: network.forward(routed(batch, {0, 1}, WIDE), pool))
    positions = held.wait(4)  # two pieces of each expert
    for position in positions[::2]:
        release_and_wait_for_a_beat(held, position, counter)
    while step.is_alive():
        for position in held.wait(1, timeout_s=0.05):
            held.release(position)


def test_experts_of_the_next_layer_are_read_ahead_while_one_is_computed(wide: Pack) -> None:
    """All rows need experts 0 and 1 of each layer. Of three slots the layer leaves one, which is read ahead."""
    held = HeldReads(wide.file)
    network = wide.stored(3, read=held.read)
    pool, [batch] = KvPool(WIDE, 6, BLOCK_SIZE, "float32", CPU), list(batches(WIDE, [1]))
    step = in_thread(lambda: network.forward(routed(batch, {0, 1}, WIDE), pool))
    tensors = read_header(wide.folder).tensors
    ahead = tensors["layers.1.experts.0"].start
    positions = held.wait(6)  # two pieces of each of three experts
    assert sorted(positions)[4] == ahead, "the first layer's experts are not complete"
    while step.is_alive():
        for position in held.wait(1, timeout_s=0.05):
            held.release(position)
    counts = store_of(network).counts()
    assert (counts.misses, counts.foreseen, counts.unneeded_bytes) == (4, 2, 0)
    assert counts.read_bytes == 4 * store_of(network).num_bytes // 3


@pytest.mark.parametrize(("num_rows", "num_layers"), [(1, 4), (2, 2)], ids=["one row", "two rows"])
def test_one_row_reads_three_layers_ahead_and_several_rows_one(num_rows: int, num_layers: int, tmp_path: Path) -> None:
    """All rows need experts 0 and 1 of each layer, each of one piece, and there are slots for all experts."""
    config = replace(CONFIG, num_layers=5)
    deep = new_pack(tmp_path / "deep", config, torch.float32)
    held = HeldReads(deep.file)
    network = deep.stored(5 * NUM_EXPERTS + 3, read=held.read)
    pool, [batch] = KvPool(config, 11, BLOCK_SIZE, "float32", CPU), list(batches(config, [num_rows]))
    step = in_thread(lambda: network.forward(routed(batch, {0, 1}, config), pool))
    held.wait(2 * num_layers)
    tensors = read_header(deep.folder).tensors
    expected = [tensors[f"layers.{layer}.experts.{expert}"].start for layer in range(num_layers) for expert in (0, 1)]
    assert sorted(held.wait(2 * num_layers + 1, timeout_s=0.05)) == sorted(expected)
    while step.is_alive():
        for position in held.wait(1, timeout_s=0.05):
            held.release(position)


def test_an_expert_that_was_read_ahead_in_vain_is_counted(wide: Pack) -> None:
    """The forecast follows the residual stream before a layer's experts: of these first steps it errs in some."""
    unneeded = [_unneeded_bytes(wide, seed) for seed in range(12)]
    assert min(unneeded) == 0 < max(unneeded)


def _unneeded_bytes(wide: Pack, seed: int) -> int:
    """Compute the first step of a new network, which needs two experts in each layer; return the bytes that were read
    beyond those."""
    held = HeldReads(wide.file)
    network = wide.stored(3, read=held.read)
    store = store_of(network)
    step = in_thread(lambda: logits_of(network, [1], seed))
    held.wait(6)  # two pieces of each of two experts of the first layer, and of one that is read ahead

    def is_settled() -> bool:
        for position in held.wait(1, timeout_s=0.05):
            held.release(position)
        counts = store.counts()
        return not step.is_alive() and counts.read_bytes + counts.unneeded_bytes == held.num_bytes

    wait_until(is_settled)
    counts = store.counts()
    held.open()  # a read ahead may still begin
    assert counts.read_bytes == 4 * store.num_bytes // 3, "what the layers need"
    return counts.unneeded_bytes


def test_experts_that_were_read_ahead_in_vain_make_room(wide: Pack) -> None:
    network, resident = wide.stored(3), wide.resident()
    sizes = [1] * 12
    assert_equal(logits_of(network, sizes), logits_of(resident, sizes))
    counts = store_of(network).counts()
    assert counts.foreseen > 0 and counts.misses >= counts.foreseen
