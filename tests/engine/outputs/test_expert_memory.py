"""An engine whose experts are read when a step needs them gives the tokens of one with all experts in memory."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.capacity.expert_memory import ExpertMemory, plan_cached_experts, plan_expert_memory
from engine.config import EngineConfig
from engine.errors import EngineConfigError, FatalEngineError
from engine.startup import loading
from engine.startup.description import ready_message
from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.checkpoint.pack.experts import expert_tensors
from model.checkpoint.pack.header import WEIGHTS_NAME, read_header
from model.ops.native.library import NativeUnavailableError
from model.ops.native.ops import NativeOps
from smoe import LocalEngine, SamplingParams
from tests.support.checkpoints.adapters import random_tensors, save_adapter
from tests.support.checkpoints.gguf import GgufShape, iq2_m, write_gguf
from tests.support.checkpoints.packs import make_pack
from tests.support.paths import DEMO

SMALL: dict[str, Any] = {"threads": 1, "num_kv_blocks": 64, "max_num_batched_tokens": 32}
PROMPTS = [[1, 5, 9, 33, 70], [1, 100], list(range(40)), [1, 7, 8]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pack(DEMO, tmp_path_factory.mktemp("packs") / "demo-int8", quantization="int8")


def slots(pack: Path, count: int) -> int:
    """Return the bytes of so many experts."""
    return count * expert_tensors(read_header(pack)).largest_bytes


def answers_of(engine: LocalEngine) -> list[tuple[list[int], list[float]]]:
    params = SamplingParams(max_tokens=8, temperature=0, num_logprobs=1, ignore_eos=True)
    return [(c.token_ids, [one.logprob for one in c.logprobs]) for c in engine.generate(PROMPTS, params)]


@pytest.mark.parametrize("count", [2, 20])
def test_an_engine_with_few_experts_in_memory_gives_the_same_answers(count: int, packed: Path) -> None:
    resident = LocalEngine(packed, **SMALL)
    stored = LocalEngine(packed, expert_memory=slots(packed, count), **SMALL)
    assert stored.fingerprint == resident.fingerprint
    assert answers_of(stored) == answers_of(resident)
    assert ready_message(stored._engine.config, stored._engine.loaded).expert_slots == count


def test_experts_in_code_books_are_read_too(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", GgufShape(num_layers=2), iq2_m)
    pack = make_pack(tmp_path / "a.gguf", tmp_path / "p")
    resident = LocalEngine(pack, **SMALL)
    assert answers_of(LocalEngine(pack, expert_memory=slots(pack, 3), **SMALL)) == answers_of(resident)


def test_adapters_add_the_same_terms_to_experts_that_are_read(packed: Path, tmp_path: Path) -> None:
    """The terms of an adapter are always in memory; rows with and without one need the same experts."""
    folder = save_adapter(tmp_path / "sql", random_tensors(load_config(packed)[0], seed=1))
    settings: dict[str, Any] = SMALL | {"lora": {"sql": str(folder)}}
    resident, stored = LocalEngine(packed, **settings), LocalEngine(packed, expert_memory=slots(packed, 3), **settings)
    params = SamplingParams(max_tokens=6, temperature=0, num_logprobs=1, ignore_eos=True)
    each = [params, msgspec.structs.replace(params, adapter="sql")] * 2
    found, expected = (engine.generate(PROMPTS, each) for engine in (stored, resident))
    assert [(c.token_ids, c.logprobs) for c in found] == [(c.token_ids, c.logprobs) for c in expected]
    assert expected[1].logprobs != resident.generate(PROMPTS[1], params)[0].logprobs


def test_steps_report_what_they_read(packed: Path) -> None:
    engine = LocalEngine(packed, expert_memory=slots(packed, 20), **SMALL)
    assert engine.stats.expert_reads is not None and engine.stats.expert_reads.num_misses == 0, "the warm-up counts not"
    engine.add([1, 5, 9], SamplingParams(max_tokens=1, temperature=0))
    reads = engine._engine.step().stats.expert_reads
    assert reads is not None and reads.num_misses > 0 and reads.waited_s > 0
    assert reads.num_bytes == reads.num_misses * slots(packed, 1)
    assert LocalEngine(packed, **SMALL).stats.expert_reads is None


def test_a_pack_that_is_cut_ends_the_engine_with_the_name_of_the_expert(packed: Path, tmp_path: Path) -> None:
    cut = shutil.copytree(packed, tmp_path / "cut")
    engine = LocalEngine(cut, expert_memory=slots(cut, 2), weights_memory="copy", **SMALL)
    os.truncate(cut / WEIGHTS_NAME, read_header(cut).tensors["layers.2.experts.0"].start)
    with pytest.raises(
        FatalEngineError, match=r"weights\.smoe: expert \d of layer 2 cannot be read at byte \d+, twice"
    ):
        answers_of(engine)


def test_auto_takes_what_is_left(packed: Path) -> None:
    engine = LocalEngine(packed, expert_memory="auto", **SMALL)
    loaded = engine._engine.loaded
    assert loaded.experts is not None and loaded.experts.num_slots == loaded.experts.num_experts, "all fit here"
    model, _ = load_config(packed)
    for count in (2, 7):
        room = loaded.experts.dense_bytes + slots(packed, count + 1) - 1  # a byte too few for one more
        limits: dict[str, Any] = {"max_num_batched_tokens": 4, "max_num_seqs": 3, "speculation": "off"}
        auto = EngineConfig(model=str(packed), expert_memory="auto", **limits)
        planned = plan_expert_memory(auto, model, room * 8 // 7)
        assert planned is not None and planned.num_slots == count, "an eighth is left"
        hidden, outputs, logits = 4 * 2 * model.hidden_dim * 4, 4 * 2 * model.dim * 4, 3 * model.vocab_size * 4
        beside = (1 << 30) + 9 + 2 * (hidden + outputs + logits)
        config = msgspec.structs.replace(auto, kv_cache_memory_bytes=1 << 30, min_server_bytes=9, ample_server_bytes=99)
        planned = plan_expert_memory(config, model, (room + beside) * 64 // 63)
        assert planned is not None and planned.num_slots == count, "what is set, the least for requests and a 64th"


def test_a_mapped_pack_that_is_too_large_keeps_what_fits_in_the_page_cache(packed: Path) -> None:
    model, _ = load_config(packed)
    limits: dict[str, Any] = {"max_num_batched_tokens": 4, "max_num_seqs": 3, "speculation": "off"}
    config = EngineConfig(model=str(packed), weights_memory="map", **limits)
    whole = plan_expert_memory(msgspec.structs.replace(config, expert_memory=slots(packed, 40)), model, 1 << 40)
    assert whole is not None and whole.num_experts == 40 and not whole.in_page_cache
    step = 2 * 4 * (4 * 2 * (model.hidden_dim + model.dim) + 3 * model.vocab_size)
    room = (whole.dense_bytes + slots(packed, 8) - 4 + step) * 32 // 29  # a 16th for the KV cache, a 32nd for the rest
    planned = plan_cached_experts(config, model, room)
    assert planned == ExpertMemory(7, whole.slot_bytes, 40, whole.dense_bytes, in_page_cache=True)
    assert plan_cached_experts(config, model, 1 << 40) is None, "all fit"
    assert plan_cached_experts(config, model, 1 << 16) is None, "not even the least number fits"
    for other in ({"weights_memory": "lock"}, {"expert_memory": "auto"}, {"tensor_parallel_size": 2}):
        assert plan_cached_experts(msgspec.structs.replace(config, **other), model, room) is None


def test_an_engine_whose_experts_are_in_the_page_cache_gives_the_same_answers(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = LocalEngine(packed, **SMALL)
    sizes = LocalEngine(packed, expert_memory="auto", **SMALL)._engine.loaded.experts
    assert sizes is not None
    few = ExpertMemory(5, sizes.slot_bytes, sizes.num_experts, sizes.dense_bytes, in_page_cache=True)
    monkeypatch.setattr(loading, "plan_cached_experts", lambda config, model, free_bytes: few)
    cached = LocalEngine(packed, **SMALL)
    assert cached.fingerprint == resident.fingerprint
    assert answers_of(cached) == answers_of(resident)
    ready, before = (ready_message(one._engine.config, one._engine.loaded) for one in (cached, resident))
    assert ready.expert_slots == 5 and before.expert_slots == 0
    assert ready.mapped_bytes == ready.weight_bytes == before.weight_bytes, "the system may drop all of them"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"expert_memory": 1000}, r"^--expert-memory 1000 B is too small: 2 experts of this pack take .*iB$"),
    ({"expert_memory": 1 << 20, "tensor_parallel_size": 2}, r"^--expert-memory: experts are read by one rank"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_cannot_work_are_refused_in_one_line(
    settings: dict[str, Any], message: str, packed: Path
) -> None:
    with pytest.raises(EngineConfigError, match=message):
        LocalEngine(packed, **(SMALL | settings))


def test_a_checkpoint_is_refused_with_the_command_that_packs_it() -> None:
    with pytest.raises(EngineConfigError, match=r"^--expert-memory needs a pack; make one with: smoe pack .*demo"):
        LocalEngine(DEMO, expert_memory="auto", **SMALL)


def test_a_pack_of_another_network_than_its_config_is_refused_before_its_experts_are_counted(packed: Path) -> None:
    other = replace(load_config(packed)[0], num_layers=4)
    for settings in ({"expert_memory": "auto"}, {"weights_memory": "map"}):
        config = EngineConfig(model=str(packed), **settings)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=r"config\.json was changed: num_layers is 4"):
            plan_expert_memory(config, other, 1 << 40) or plan_cached_experts(config, other, 1 << 40)


def test_threads_of_reads_that_the_system_cannot_start_are_one_line(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NativeUnavailableError("cannot start 8 threads that read experts")

    monkeypatch.setattr(NativeOps, "store_experts", fail)
    with pytest.raises(EngineConfigError, match=r"^cannot start 8 threads that read experts: raise the limit of"):
        LocalEngine(packed, expert_memory="auto", **SMALL)


def test_what_does_not_fit_is_refused_with_the_sizes(packed: Path) -> None:
    model, _ = load_config(packed)
    size = slots(packed, 4)
    config = EngineConfig(model=str(packed), expert_memory=size)
    with pytest.raises(EngineConfigError, match=r"does not fit: with the other weights .*; --expert-memory auto takes"):
        plan_expert_memory(config, model, size)
    auto = EngineConfig(model=str(packed), expert_memory="auto")
    with pytest.raises(EngineConfigError, match=r"^--expert-memory auto: 0 B are left for experts: 2 experts of this"):
        plan_expert_memory(auto, model, 1 << 16)
    with pytest.raises(EngineConfigError, match=r"^the LoRA adapters take 128\.0 KiB, and 64\.0 KiB are free"):
        plan_expert_memory(auto, model, 1 << 16, adapter_bytes=1 << 17)
