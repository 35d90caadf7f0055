"""Requests with LoRA adapters in one engine: tokens, the prefix cache, and what the engine refuses."""

import gc
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import torch

from engine.capacity.sizing import kv_block_bytes
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineConfigError, RequestRejectedError
from engine.messages import AdapterLoaded, LoadAdapter
from engine.startup import loading
from engine.startup.adapters import load_adapters
from engine.startup.description import ready_message
from engine.startup.device_memory import HostMemory
from engine.types import Request
from engine.types import SamplingParams as TokenSamplingParams
from model.checkpoint.config_file import load_config
from model.checkpoint.errors import CheckpointError
from model.lora.load import load_adapter
from smoe import Completion, LocalEngine, SamplingParams
from tests.support.checkpoints.adapters import merge, random_tensors, save_adapter
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.checkpoints.packs import make_pack
from tests.support.conditions import wait_until

PARAMS = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True, num_logprobs=0)
NAMES = ["", "sql", "poems", "same as sql"]
SETTINGS = {"dtype": "float32", "threads": 2, "num_kv_blocks": 80, "max_model_len": 128, "check_integrity": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_in_layout(random_model(Shape(num_experts=4)), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    config, folder = load_config(checkpoint)[0], tmp_path_factory.mktemp("adapters")
    seeds = {"sql": 1, "poems": 2, "same as sql": 1}
    return {name: str(save_adapter(folder / name, random_tensors(config, seed=seed))) for name, seed in seeds.items()}


@pytest.fixture
def engine(checkpoint: Path, folders: dict[str, str]) -> Iterator[LocalEngine]:
    torch.set_num_threads(1)
    engine = LocalEngine(checkpoint, lora=folders, **SETTINGS)
    yield engine
    engine.check_integrity()


def _prompt(seed: int, length: int = 40) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 101) for _ in range(length)]


def _with(adapter: str) -> SamplingParams:
    return msgspec.structs.replace(PARAMS, adapter=adapter)


def _results(completions: list[Completion]) -> list[object]:
    return [(completion.token_ids, completion.logprobs) for completion in completions]


def test_requests_of_all_adapters_at_once_get_what_they_get_alone(
    engine: LocalEngine, checkpoint: Path, folders: dict[str, str], tmp_path: Path
) -> None:
    """Those without an adapter get what an engine without adapters gives, and one with "sql" what merged weights do."""
    prompts = [_prompt(seed) for seed in range(8)]
    params = [_with(NAMES[seed % 4]) for seed in range(8)]
    together = engine.generate(prompts, params)
    alone = [engine.generate(prompt, one)[0] for prompt, one in zip(prompts, params, strict=True)]
    assert _results(together) == _results(alone)
    plain = LocalEngine(checkpoint, **SETTINGS)
    assert _results(plain.generate([prompts[0], prompts[4]], PARAMS)) == _results([together[0], together[4]])
    merged = save_in_layout(random_model(Shape(num_experts=4)), tmp_path)
    merge(merged, Path(folders["sql"]))
    [expected] = LocalEngine(merged, **SETTINGS).generate(prompts[1], PARAMS)
    assert expected.token_ids == together[1].token_ids
    assert [entry.logprob for entry in expected.logprobs] == pytest.approx(
        [entry.logprob for entry in together[1].logprobs], abs=1e-3
    )


def test_a_prefix_is_found_only_by_requests_with_the_same_adapter(engine: LocalEngine) -> None:
    """Adapters are the same if their files have equal bytes, whatever their names."""
    prompt = _prompt(1)
    first = {name: engine.generate(prompt, _with(name))[0].num_cached_tokens for name in NAMES}
    assert first == {"": 0, "sql": 0, "poems": 0, "same as sql": 32}
    again = {name: engine.generate(prompt, _with(name))[0].num_cached_tokens for name in NAMES}
    assert set(again.values()) == {32}


def test_an_adapter_that_is_not_loaded_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(RequestRejectedError, match=r"no LoRA adapter 'python'; there are: sql, poems"):
        engine.generate(_prompt(1), _with("python"))
    inner = engine._engine
    inner.add(Request(99, _prompt(1), TokenSamplingParams(), adapter="0123"))
    [output] = inner.step().outputs
    assert output.error == "the request's LoRA adapter is not loaded any more"


def test_an_adapter_is_loaded_while_requests_run_and_its_memory_is_freed_when_it_is_unloaded(
    engine: LocalEngine, folders: dict[str, str]
) -> None:
    inner = engine._engine
    [expected] = engine.generate(_prompt(3), _with("poems"))
    first = inner.loaded.runner.adapters.digests["poems"]
    inner.unload_adapter(first)
    with pytest.raises(RequestRejectedError):
        engine.generate(_prompt(3), _with("poems"))
    inner.load_adapter(LoadAdapter(1, "verses", folders["poems"]))
    inner.load_adapter(LoadAdapter(2, "none", folders["poems"] + "/nowhere"))
    running = engine.add(_prompt(4), _with("sql"))
    answers: list[AdapterLoaded] = []

    def is_answered() -> bool:
        outputs = engine.step() if engine.has_work() else []
        assert all(output.request_id == running and output.error is None for output in outputs)
        answers.extend(inner.pop_loaded_adapters())
        return len(answers) == 2

    wait_until(is_answered)
    while engine.has_work():
        engine.step()
    assert answers[0] == AdapterLoaded(1, first)
    assert answers[1].error is not None and answers[1].error.endswith("nowhere: no such directory")
    assert _results(engine.generate(_prompt(3), _with("verses"))) == _results([expected])
    loaded = weakref.ref(inner.loaded.runner.adapters._adapters[first])
    inner.unload_adapter(first)
    gc.collect()
    assert loaded() is None


def _loaded(engine: Engine, name: str, directory: str) -> str:
    """Load an adapter while the engine runs; return the reason why it was not, "" if it was."""
    answers: list[AdapterLoaded] = []
    engine.load_adapter(LoadAdapter(1, name, directory))

    def is_answered() -> bool:
        answers.extend(engine.pop_loaded_adapters())
        return bool(answers)

    wait_until(is_answered)
    return answers[0].error or ""


def test_adapters_take_no_memory_that_the_kv_cache_was_promised(
    checkpoint: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pages of the KV cache that were never written count as free. An engine that takes the place of one that crashed
    finds the memory for its KV cache beside all adapters that were loaded."""
    model, used = load_config(checkpoint)[0], [0]
    adapters = [load_adapter(Path(folders[name]), model) for name in ("sql", "poems")]
    size = adapters[0].num_bytes
    block_bytes = kv_block_bytes(EngineConfig(model="", dtype="float32"), model)
    monkeypatch.setattr(HostMemory, "free_bytes", lambda self: size * 5 // 2 + 81 * block_bytes - used[0])
    config = EngineConfig(model=str(checkpoint), dtype="float32", threads=1, num_kv_blocks=80)
    engine = Engine.load(config)
    assert _loaded(engine, "a", folders["sql"]) == "" == _loaded(engine, "b", folders["poems"])
    used[0] = 2 * size
    third = str(save_adapter(tmp_path / "third", random_tensors(model, seed=3)))
    assert _loaded(engine, "c", third).endswith(f"bytes, of which {size // 2:,} are left beside the KV cache")
    assert _loaded(engine, "d", folders["same as sql"]).endswith("are left beside the KV cache")

    def restarted(*names: str) -> Engine:
        used[0] = sum(adapter.num_bytes for adapter in adapters[: len(names)])  # when they are loaded again
        return Engine.load(msgspec.structs.replace(config, lora={name: folders[name] for name in names}))

    assert restarted("sql", "poems").loaded.bytes_for_adapters == size // 2
    used[0] = 2 * size
    engine.unload_adapter(adapters[0].digest)
    assert _loaded(engine, "c", third) == ""
    used[0] += 81 * block_bytes + 1
    reason = _loaded(engine, "e", folders["sql"])
    assert reason.endswith(f"bytes, of which {size // 2 - 1:,} are free"), reason


def test_an_engine_that_computes_no_adapters_refuses_to_start(folders: dict[str, str], checkpoint: Path) -> None:
    config = EngineConfig(model=str(checkpoint), lora=folders, tensor_parallel_size=2, threads=1)
    with pytest.raises(EngineConfigError, match="--lora: adapters are not divided among ranks"):
        Engine.load(config)
    with pytest.raises(CheckpointError, match=r"nowhere: no such directory"):
        Engine.load(EngineConfig(model=str(checkpoint), lora={"a": str(checkpoint / "nowhere")}))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_adapters_on_a_gpu_are_refused_before_weights_are_read(
    checkpoint: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch, backend: Literal["auto", "reference"]
) -> None:
    monkeypatch.setattr(loading, "choose_device", lambda config: torch.device("cuda"))
    with pytest.raises(EngineConfigError, match="--lora: adapters are not computed on a GPU"):
        Engine.load(EngineConfig(model=str(checkpoint), lora=folders, backend=backend))


def test_a_start_reports_each_adapter_also_one_that_it_drops(checkpoint: Path, folders: dict[str, str]) -> None:
    """Each report advances the heartbeat: loading many takes longer than a stuck engine is waited for. Headers are read
    first, to plan the memory."""
    reports: list[tuple[str, int, int]] = []
    config = EngineConfig(model=str(checkpoint), threads=1, lora={"gone": "nowhere"} | folders, drop_bad_adapters=True)
    Engine.load(config, lambda *report: reports.append(report))
    assert [report for report in reports if report[0] == "adapters"] == 2 * [("adapters", n, 4) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("is_pack", [False, True])
def test_an_engine_that_replaces_another_starts_without_the_adapters_that_it_cannot_load(
    checkpoint: Path, folders: dict[str, str], tmp_path: Path, is_pack: bool
) -> None:
    """Faults of the header and of values, with experts that are read when they are needed too."""
    tensors = random_tensors(load_config(checkpoint)[0], seed=3)
    next(iter(tensors.values()))[0, 0] = torch.nan
    damaged = save_adapter(tmp_path / "nan", tensors)
    lora = {"gone": str(tmp_path / "gone"), "sql": folders["sql"], "damaged": str(damaged)}
    model = make_pack(checkpoint, tmp_path / "pack") if is_pack else checkpoint
    config = EngineConfig(
        model=str(model), lora=lora, dtype="float32", num_kv_blocks=80, expert_memory="auto" if is_pack else None
    )
    for name in ("gone", "damaged"):
        with pytest.raises(CheckpointError):
            Engine.load(msgspec.structs.replace(config, lora={name: lora[name]}))
    loaded = Engine.load(msgspec.structs.replace(config, drop_bad_adapters=True)).loaded
    ready = ready_message(config, loaded)
    assert list(ready.adapters) == ["sql"]
    assert list(ready.dropped_adapters) == ["gone", "damaged"]
    assert "NaN" in ready.dropped_adapters["damaged"] and "gone" in ready.dropped_adapters["gone"]


def test_adapters_that_need_more_memory_than_there_is_are_left_out(
    checkpoint: Path, folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("engine.startup.adapters.load_adapter", fail)
    config = EngineConfig(model="m", lora=folders, drop_bad_adapters=True)
    store = load_adapters(config, load_config(checkpoint)[0])
    assert store.dropped == dict.fromkeys(folders, "out of memory while the adapter was loaded")
