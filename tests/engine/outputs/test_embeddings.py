"""Embeddings of the engine against transformers: the last token's hidden state behind the final norm, of length 1.

The oracle sees each prompt alone, without cache, chunks or batch.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import RequestRejectedError
from engine.types import Request, RequestOutput
from engine.types import SamplingParams as EngineParams
from model.ops.native.library import NativeLibrary
from smoe import LocalEngine, SamplingParams
from tests.support.checkpoints.gguf import GgufShape, all_of, write_gguf
from tests.support.checkpoints.mixtral import Shape, random_model, save_embedding_checkpoint, save_random_checkpoint

TOLERANCE = 2e-6
DENSE = Shape(num_experts=0, seed=5)
WINDOW = Shape(num_experts=0, window=16, num_kv_heads=1, num_layers=3, seed=6)
SCHEDULES: dict[str, dict[str, Any]] = {
    "whole prompts": {"max_num_batched_tokens": 2048},
    "chunks of 7": {"max_num_batched_tokens": 7},
    "chunks of 64, steps ahead": {"max_num_batched_tokens": 64, "async_scheduling": True},
    "preemption": {"max_num_batched_tokens": 64, "num_kv_blocks": 30, "max_model_len": 400},
}


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 101) for _ in range(length)] for length in lengths]


@torch.no_grad()
def pooled(oracle: Any, prompt: list[int], dimensions: int | None = None) -> list[float]:
    state = oracle(torch.tensor([prompt]), use_cache=False).last_hidden_state[0, -1, :dimensions]
    return list(torch.nn.functional.normalize(state, dim=0).tolist())


@pytest.fixture(scope="module", params=[DENSE, WINDOW], ids=["full", "window"])
def embedding_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("checkpoint")
    return path, save_embedding_checkpoint(request.param, path)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_embeddings_equal_transformers_under_every_schedule(
    embedding_model: tuple[Path, Any], backend: str, schedule: str
) -> None:
    path, oracle = embedding_model
    engine = LocalEngine(path, backend=backend, threads=1, dtype="float32", check_integrity=True, **SCHEDULES[schedule])
    given = prompts(1, 5, 64, 300, 2, 130)
    for prompt, embedding in zip(given, engine.embed(given), strict=True):
        assert embedding == pytest.approx(pooled(oracle, prompt), abs=TOLERANCE)
    engine.check_integrity()
    assert engine.stats.num_blocks_held == 0


def test_fewer_dimensions_are_the_first_ones_scaled_again(embedding_model: tuple[Path, Any]) -> None:
    path, oracle = embedding_model
    [prompt] = prompts(20)
    [embedding] = LocalEngine(path, threads=1, dtype="float32").embed([prompt], dimensions=8)
    assert embedding == pytest.approx(pooled(oracle, prompt, 8), abs=TOLERANCE)
    assert sum(number * number for number in embedding) == pytest.approx(1, abs=1e-6)


def test_a_mixture_of_experts_embeds_too(tmp_path: Path) -> None:
    shape = Shape(seed=7)
    save_random_checkpoint(shape, tmp_path)
    oracle: Any = random_model(shape)
    given = prompts(3, 90)
    engine = LocalEngine(tmp_path, threads=1, dtype="float32", max_num_batched_tokens=32)
    for prompt, embedding in zip(given, engine.embed(given), strict=True):
        assert embedding == pytest.approx(pooled(oracle.model, prompt), abs=TOLERANCE)


def test_a_gguf_file_with_last_token_pooling_embeds(tmp_path: Path) -> None:
    """Its weights are read by the `gguf` package, and computed by transformers."""
    shape = GgufShape(dim=64, num_layers=2, hidden_dim=96, num_experts=0, tied=True, fields={"llama.pooling_type": 3})
    weights = write_gguf(tmp_path / "a.gguf", shape, all_of("F32"))
    hf_shape = Shape(dim=64, hidden_dim=96, num_experts=0, theta=1e6, tied=True, extra={"rms_norm_eps": 1e-5})
    oracle: Any = random_model(hf_shape)
    oracle.load_state_dict({name: torch.from_numpy(weight.copy()) for name, weight in weights.items()}, strict=False)
    given = prompts(3, 40)
    engine = LocalEngine(tmp_path / "a.gguf", threads=1, dtype="float32")
    for prompt, embedding in zip(given, engine.embed(given), strict=True):
        assert embedding == pytest.approx(pooled(oracle.model, prompt), abs=TOLERANCE)


def test_a_prefix_hit_gives_the_same_bits(embedding_model: tuple[Path, Any]) -> None:
    engine = LocalEngine(embedding_model[0], threads=1)
    [prompt] = prompts(100)
    alone = engine.embed([prompt])
    outputs = embed(engine, [prompt])
    assert outputs[0].num_cached_tokens >= 64
    assert engine.embed([prompt]) == alone


def embed(engine: LocalEngine, given: list[list[int]], first_id: int = 10**6) -> list[RequestOutput]:
    for index, prompt in enumerate(given):
        engine._engine.add(Request(first_id + index, prompt, EngineParams(max_tokens=0), embedding_len=32))
    outputs: dict[int, RequestOutput] = {}
    while engine.has_work():
        outputs |= {output.request_id: output for output in engine.step()}
    return [outputs[first_id + index] for index in range(len(given))]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", NativeLibrary().isas())
def test_neither_embeddings_nor_their_batch_mates_change_a_bit(tmp_path: Path, isa: str, dtype: str) -> None:
    """Generating requests share steps with prompts to embed; each has the bits that it has alone."""
    save_random_checkpoint(Shape(dim=96, hidden_dim=112, seed=3), tmp_path)
    common = {"isa": isa, "dtype": dtype}
    to_embed, to_continue = prompts(1, 17, 250, 40, 99), prompts(2, 60, 33, seed=2)
    params = SamplingParams(max_tokens=24, temperature=1, seed=4, num_logprobs=2, ignore_eos=True)
    solo = LocalEngine(tmp_path, threads=1, enable_prefix_caching=False, **common)
    vectors = [solo.embed([prompt])[0] for prompt in to_embed]
    alone = [solo.generate([prompt], params)[0] for prompt in to_continue]
    shared = LocalEngine(
        tmp_path, threads=2, max_num_batched_tokens=40, num_kv_blocks=24, max_model_len=300, max_num_seqs=8, **common
    )
    ids = [shared.add(prompt, params) for prompt in to_continue]
    tokens: dict[int, list[Any]] = {request_id: [] for request_id in ids}
    for index, prompt in enumerate(to_embed):
        shared._engine.add(Request(1000 + index, prompt, EngineParams(max_tokens=0), embedding_len=96))
    found: dict[int, list[float]] = {}
    while shared.has_work():
        for output in shared.step():
            if output.embedding is not None:
                found[output.request_id] = torch.frombuffer(bytearray(output.embedding), dtype=torch.float32).tolist()
            elif output.request_id in tokens:
                tokens[output.request_id] += zip(output.token_ids, output.logprobs or [], strict=True)
    assert [found[1000 + index] for index in range(len(to_embed))] == vectors
    assert [tokens[i] for i in ids] == [list(zip(c.token_ids, c.logprobs, strict=True)) for c in alone]


def test_an_embedding_ends_with_stop_and_generates_nothing(embedding_model: tuple[Path, Any]) -> None:
    engine = LocalEngine(embedding_model[0], threads=1)
    [output] = embed(engine, prompts(9))
    assert (output.token_ids, output.finish_reason, output.error) == ([], "stop", None)
    assert output.timing is not None and output.timing.first_token_s is None


def test_an_aborted_embedding_has_no_output_and_frees_its_blocks(embedding_model: tuple[Path, Any]) -> None:
    engine = LocalEngine(embedding_model[0], threads=1, max_num_batched_tokens=16)
    [prompt] = prompts(100)
    engine._engine.add(Request(1, prompt, EngineParams(max_tokens=0), embedding_len=32))
    assert engine.step() == [] and engine.stats.num_blocks_held
    engine.abort(1)
    assert not engine.has_work() and engine.stats.num_blocks_held == 0


@pytest.mark.parametrize("length", [0, 33])
def test_more_dimensions_than_the_model_has_are_refused(embedding_model: tuple[Path, Any], length: int) -> None:
    engine = LocalEngine(embedding_model[0], threads=1)
    with pytest.raises(RequestRejectedError, match="1 to 32 numbers"):
        engine.embed(prompts(3), dimensions=length)


def test_an_embedding_beside_generated_tokens_is_refused(embedding_model: tuple[Path, Any]) -> None:
    engine = LocalEngine(embedding_model[0], threads=1)
    engine._engine.add(Request(1, [5], EngineParams(max_tokens=2), embedding_len=32))
    [output] = engine.step()
    assert output.finish_reason == "error" and "max_tokens must be 0" in (output.error or "")


def test_a_state_that_is_not_finite_fails_its_own_request_only(embedding_model: tuple[Path, Any]) -> None:
    engine = LocalEngine(embedding_model[0], threads=1, dtype="float32", enable_prefix_caching=False)
    good, bad = prompts(8, 8)
    vectors = engine.embed([good])
    engine._engine.loaded.runner.model.weights.embedding[bad[-1]] = float("nan")
    assert bad[-1] not in good
    outputs = embed(engine, [good, bad])
    assert [output.finish_reason for output in outputs] == ["stop", "error"]
    assert torch.frombuffer(bytearray(outputs[0].embedding or b""), dtype=torch.float32).tolist() == vectors[0]
