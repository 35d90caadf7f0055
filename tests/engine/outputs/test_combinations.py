"""Features in combination: every pair of them, on and off, occurs in six engines. Each request gets the numbers that it
gets alone in a plain engine, and nothing of it is left."""

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.grammars.build_queue import GrammarQueue
from engine.grammars.mask_budget import MaskBudget
from engine.grammars.matcher import GrammarCompiler
from engine.messages import LoadAdapter
from engine.scheduling.step_plan import StepPlan
from engine.token_constraints import token_constraints
from engine.types import Request, RequestOutput, SamplingParams
from model.checkpoint.config_file import load_config
from model.checkpoint.pack.experts import expert_tensors
from model.checkpoint.pack.header import read_header
from tests.support.checkpoints.adapters import random_tensors, save_adapter
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.checkpoints.packs import make_pack
from tests.support.conditions import wait_until
from tests.support.pairwise import NUM_RUNS, assert_all_pairs, chosen
from tests.support.speculation.drafted_grammars import END, VOCAB, VOCABULARY, random_grammar
from tests.support.speculation.guessing_drafter import GuessingDrafter

ADAPTERS, GRAMMARS, DRAFTS = "adapters loaded and unloaded", "grammars with one parser", "drafts"
TIGHT, WINDOW, INT8_CACHE = "too few blocks", "window", "int8 cache"
STORED, FAULTS, TENANTS, REPORTS = "experts read from a pack", "steps that fail", "tenants", "reports and embeddings"
FEATURES = (ADAPTERS, GRAMMARS, DRAFTS, TIGHT, WINDOW, INT8_CACHE, STORED, FAULTS, TENANTS, REPORTS)

SHAPE = Shape(dim=64, hidden_dim=96, num_experts=4, seed=1)
MAX_MODEL_LEN, BLOCK_SIZE, WINDOW_LEN = 160, 8, 40
NUM_REQUESTS, NUM_ADAPTERS, NUM_TENANTS = 24, 2, 2
FAULT_RATE = 0.1


@dataclass(frozen=True)
class Files:
    """A checkpoint, its pack, and adapters by name."""

    checkpoint: Path
    pack: Path
    adapters: dict[str, str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("combinations")
    save_random_checkpoint(SHAPE, folder / "checkpoint")
    config = load_config(folder / "checkpoint")[0]
    pack = make_pack(folder / "checkpoint", folder / "pack", dtype="float32")
    tensors = {f"adapter {i}": random_tensors(config, rank=4 + i, seed=i) for i in range(NUM_ADAPTERS)}
    adapters = {name: str(save_adapter(folder / name, of_adapter)) for name, of_adapter in tensors.items()}
    return Files(folder / "checkpoint", pack, adapters)


def test_every_pair_of_features_occurs_in_every_combination() -> None:
    assert_all_pairs(FEATURES)


@pytest.mark.parametrize("run", range(NUM_RUNS), ids=lambda run: ", ".join(sorted(chosen(run, FEATURES))) or "plain")
def test_requests_get_the_numbers_that_they_get_alone(run: int, files: Files, scale: int) -> None:
    features, rng = chosen(run, FEATURES), random.Random(run)
    numerics: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": MAX_MODEL_LEN,
        "sliding_window": WINDOW_LEN if WINDOW in features else "none",
        "kv_cache_dtype": "int8" if INT8_CACHE in features else "auto",
    }
    plain = new_engine(files.checkpoint, numerics | {"speculation": "off", "lora": files.adapters}, num_parsers=9)
    digests = dict(plain.loaded.runner.adapters.digests)
    requests = random_requests(rng, features, list(digests.values()), NUM_REQUESTS * scale)
    alone = {request.request_id: serve_alone(plain, request) for request in requests}
    together = Together(files, features, numerics, alone, rng)
    together.serve(requests, {digest: name for name, digest in digests.items()})
    assert together.results == alone
    assert_nothing_is_left(together.engine)
    together.assert_met()


def new_engine(model: Path, settings: dict[str, Any], num_parsers: int) -> Engine:
    common = {"threads": 1, "block_size": BLOCK_SIZE, "num_kv_blocks": 400, "enable_prefix_caching": False}
    engine = Engine.load(EngineConfig(model=str(model), **common | settings), vocabulary=VOCABULARY)
    compiler = GrammarCompiler(VOCABULARY, VOCAB, (END,))
    engine._grammars = GrammarQueue(compiler, num_parsers, engine.config.num_tenants)
    return engine


def random_requests(rng: random.Random, features: frozenset[str], digests: list[str], count: int) -> list[Request]:
    """Draw requests, most of which share the beginning of their prompts with others."""
    stem = [rng.randrange(3, VOCAB) for _ in range(80)]
    lengths = [(rng.choice((0, 30, 80, 80)), rng.choice((1, 9, 30))) for _ in range(count)]
    prompts = [[*stem[:shared], *(rng.randrange(3, VOCAB) for _ in range(own))] for shared, own in lengths]
    return [random_request(rng, features, digests, i, prompt) for i, prompt in enumerate(prompts, 1)]


def random_request(
    rng: random.Random, features: frozenset[str], digests: list[str], request_id: int, prompt: list[int]
) -> Request:
    """Draw a request; about half of them use what a feature adds."""
    more: dict[str, Any] = {"adapter": rng.choice(digests)} if ADAPTERS in features and rng.random() < 0.6 else {}
    more["tenant"] = rng.randrange(NUM_TENANTS) if TENANTS in features else 0
    reports = REPORTS in features and rng.random() < 0.5
    if reports and rng.random() < 0.3:
        return Request(request_id, prompt, SamplingParams(max_tokens=0), embedding_len=SHAPE.dim, **more)
    if reports:
        more |= {"expert_routing": True, "expert_usage": rng.random() < 0.5, "gate_logits": rng.random() < 0.5}
        more |= {"prompt_routing": rng.random() < 0.3, "experts_per_token": rng.choice((None, 1, 3))}
    has_grammar = GRAMMARS in features and rng.random() < 0.4
    params = SamplingParams(
        max_tokens=rng.choice((1, 20, 50, 50)),
        temperature=rng.choice((0.0, 1.0)),
        repetition_penalty=rng.choice((1.0, 1.3)),
        min_tokens=0 if has_grammar else rng.choice((0, 5)),
        stop_token_ids=tuple(rng.sample(range(3, VOCAB), rng.choice((0, 3)))),
        constraints=token_constraints(bad_words=() if has_grammar else rng.choice(((), ((7, 8), (9,))))),
        seed=rng.randrange(2**63),
        num_logprobs=2,
        prompt_logprobs=reports and rng.random() < 0.3,
    )
    return Request(request_id, prompt, params, grammar=random_grammar(rng) if has_grammar else None, **more)


Result = dict[str, Any]  # what the outputs of a request say, in one


def add_to(result: Result, output: RequestOutput) -> None:
    assert result.get("finish_reason") is None, "an output after the end"
    for name in ("token_ids", "logprobs", "prompt_logprobs", "expert_routing", "gate_logits"):
        result[name] = result.get(name, []) + (getattr(output, name) or [])
    for name in ("expert_prompt_tokens", "embedding", "finish_reason", "stop_token_id", "error"):
        value = getattr(output, name)
        result[name] = result.get(name) if value is None else value


def serve_alone(engine: Engine, request: Request) -> Result:
    result: Result = {}
    engine.add(request)
    while engine.has_work():
        for output in engine.step().outputs:
            add_to(result, output)
    return result


class Together:
    """An engine with the features of a run, and what it gave."""

    def __init__(
        self,
        files: Files,
        features: frozenset[str],
        numerics: dict[str, Any],
        alone: dict[int, Result],
        rng: random.Random,
    ) -> None:
        self.results: dict[int, Result] = {}
        self.met: Counter[str] = Counter()
        self._files, self._features, self._rng = files, features, rng
        settings: dict[str, Any] = {
            "enable_prefix_caching": True,
            "max_num_batched_tokens": 40,
            "num_kv_blocks": MAX_MODEL_LEN // BLOCK_SIZE + (1 if TIGHT in features else 100),
            "num_tenants": NUM_TENANTS if TENANTS in features else 1,
            "speculation": "auto" if DRAFTS in features else "off",
            "check_integrity": True,
        }
        model = files.checkpoint
        if STORED in features:
            model = files.pack
            settings["expert_memory"] = 3 * expert_tensors(read_header(model)).largest_bytes
        self.engine = new_engine(model, numerics | settings, num_parsers=1)
        self.engine._masks = MaskBudget(float("inf"))  # drafts do not depend on the speed of the machine
        if DRAFTS in features:
            self.engine.scheduler.drafter = GuessingDrafter(rng, lambda r: alone[r.request_id]["token_ids"], VOCAB)
        if FAULTS in features:
            self._let_steps_fail()

    def _let_steps_fail(self) -> None:
        """Let steps of several requests fail, before or after they are computed."""
        runner = self.engine.loaded.runner
        launch = runner.launch

        def failing(plan: StepPlan) -> Any:
            moment = self._rng.random() if len(plan.chunks) > 1 else 1.0
            step = None if moment < FAULT_RATE / 2 else launch(plan)
            if moment < FAULT_RATE:
                self.met[FAULTS] += 1
                raise self._rng.choice((RuntimeError("injected"), MemoryError("out of memory")))
            return step

        runner.launch = failing  # type: ignore[method-assign]

    def serve(self, requests: list[Request], names: dict[str, str]) -> None:
        """Serve requests, which come a few at a time. `names` of adapters, by digest."""
        waiting = list(requests)

        def have_ended() -> bool:
            for request in waiting[: self._rng.choice((0, 1, 4))]:
                self._load(request.adapter, names)
                waiting.remove(request)
                self.results[request.request_id] = {}
                self.engine.add(request)
            step = self.engine.step()
            self.met[TIGHT] += step.stats.num_preemptions
            self.met[WINDOW] += step.stats.num_window_blocks_freed
            self.met[DRAFTS] += step.stats.num_accepted_tokens
            self.met["prefix hits"] += step.stats.num_prefix_hits
            self.met[STORED] += step.stats.expert_reads.num_misses if step.stats.expert_reads else 0
            for output in step.outputs:
                add_to(self.results[output.request_id], output)
            self._unload(requests)
            return not waiting and not self.engine.has_work()

        wait_until(have_ended)

    def _load(self, digest: str, names: dict[str, str]) -> None:
        """Load the adapter of the next request, unless it is loaded."""
        if not digest or digest in self.engine.loaded.runner.adapters:
            return
        self.met[ADAPTERS] += 1
        self.engine.load_adapter(LoadAdapter(self.met[ADAPTERS], names[digest], self._files.adapters[names[digest]]))
        wait_until(lambda: bool(self.engine.pop_loaded_adapters()))

    def _unload(self, requests: list[Request]) -> None:
        """Unload the adapters that no open request has."""
        has_ended = {i for i, result in self.results.items() if result.get("finish_reason")}
        used = {r.adapter for r in requests if r.request_id in self.results and r.request_id not in has_ended}
        for digest in set(self.engine.loaded.runner.adapters.digests.values()) - used:
            self.engine.unload_adapter(digest)

    def assert_met(self) -> None:
        """Check that what the features bring about happened, and that prefixes were found."""
        for feature in self._features & {ADAPTERS, DRAFTS, WINDOW, STORED, FAULTS}:
            assert self.met[feature], (feature, self.met)
        assert self.met["prefix hits"], self.met
        if TIGHT in self._features and WINDOW not in self._features:
            assert self.met[TIGHT], self.met


def assert_nothing_is_left(engine: Engine) -> None:
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_held) == (0, 0, 0)
    engine.scheduler.check_integrity()
    assert not engine.scheduler.fair_share.present
    places = engine._grammars._places
    places.give_out()
    assert not places._held.total(), "an ended request keeps a parser"
