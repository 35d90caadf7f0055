"""Requests of every kind, alone without drafts and together with drafts: the results must be equal, bit by bit."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.grammars.mask_budget import MaskBudget
from engine.scheduling.step_plan import StepPlan, StepResult
from engine.speculation.speculator import Drafter
from engine.types import RequestOutput, StepStats
from smoe import Completion, LocalEngine, SamplingParams, _extend
from tests.support.speculation.drafted_grammars import VOCAB, GrammarEngine, GrammarParams, random_grammar
from tests.support.speculation.guessing_drafter import EagerDrafter, GuessingDrafter

Work = tuple[list[int], SamplingParams]

MAX_MODEL_LEN = 220


@dataclass
class Census:
    """Counts of the cases that a comparison has met."""

    requests: int = 0
    drafted: int = 0
    accepted: int = 0
    preemptions: int = 0
    window_slides: int = 0
    stops: int = 0
    accepted_under_grammars: int = 0
    rejected_under_grammars: int = 0

    def take(self, stats: StepStats) -> None:
        self.drafted += stats.num_drafted_tokens
        self.accepted += stats.num_accepted_tokens
        self.preemptions += stats.num_preemptions
        self.window_slides += stats.num_window_blocks_freed

    def take_result(self, plan: StepPlan, result: StepResult) -> None:
        for chunk in plan.chunks:
            if chunk.draft and chunk.sequence.matcher is not None:
                num_accepted = len(result.behind_drafts.get(chunk.sequence.request_id, ()))
                self.accepted_under_grammars += num_accepted
                self.rejected_under_grammars += len(chunk.draft) - num_accepted


def random_work(rng: random.Random, count: int, grammar_share: float = 0.0) -> list[Work]:
    """Draw requests with every parameter that changes tokens or reports them. Some prompts share a prefix.

    `grammar_share`: probability that a request has a grammar."""
    work: list[Work] = []
    for _ in range(count):
        stem = rng.choice(work)[0][: rng.randint(0, 120)] if work and rng.random() < 0.4 else []
        prompt = stem + [rng.randrange(3, VOCAB) for _ in range(rng.choice((1, 2, 17, 60, 150)))]
        params = _random_params(rng)
        if grammar_share and rng.random() < grammar_share:
            params = _with_grammar(rng, params)
        work.append((prompt[: MAX_MODEL_LEN - 60], params))
    return work


def _random_params(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.choice((1, 2, 20, 40, 60)),
        temperature=rng.choice((0.0, 0.0, 1.0)),
        top_p=rng.choice((1.0, 0.9)),
        top_k=rng.choice((0, 0, 5)),
        repetition_penalty=rng.choice((1.0, 1.0, 1.3)),
        frequency_penalty=rng.choice((0.0, 0.0, 0.7)),
        min_tokens=rng.choice((0, 0, 8)),
        stop_token_ids=tuple(rng.sample(range(3, VOCAB), rng.choice((0, 1, 6)))),
        ignore_eos=rng.random() < 0.5,
        bad_words=rng.choice(((), (), ((7, 8), (9,)), tuple((a, b) for a in range(3, 60) for b in (5, 6)))),
        logit_bias=rng.choice(({}, {}, {11: 3.0, 12: -100.0})),
        allowed_token_ids=rng.choice((None, None, None, tuple(range(20, 60)))),
        seed=rng.randrange(2**63),
        num_logprobs=rng.choice((None, 0, 3)),
        prompt_logprobs=rng.random() < 0.2,
        expert_usage=rng.random() < 0.2,
        experts_per_token=rng.choice((None, None, 1, 3)),
    )


def _with_grammar(rng: random.Random, params: SamplingParams) -> SamplingParams:
    fields = {name: getattr(params, name) for name in params.__struct_fields__}
    if rng.random() < 0.8:  # most: what else restricts tokens often leaves none
        fields |= {"allowed_token_ids": None, "bad_words": (), "min_tokens": 0}
    return GrammarParams(**fields, grammar=random_grammar(rng))


def random_loads(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Yield engine settings without end; every second pool is too small for all running requests."""
    while True:
        block_size = rng.choice((4, 16, 24))
        smallest = -(-MAX_MODEL_LEN // block_size) + 1
        for num_blocks in (smallest, 4 * smallest):
            yield {
                "threads": rng.choice((1, 2)),
                "max_num_batched_tokens": rng.choice((13, 40, 300)),
                "max_num_seqs": rng.choice((5, 64) if num_blocks == smallest else (1, 5, 64)),
                "block_size": block_size,
                "num_kv_blocks": num_blocks,
                "check_integrity": True,
            }


def serve_alone(path: Path, work: list[Work], **numerics: Any) -> list[Completion]:
    """Return the completion of each request, computed one at a time without drafts, cache or chunks."""
    engine = GrammarEngine(
        path,
        threads=1,
        enable_prefix_caching=False,
        max_num_batched_tokens=1024,
        max_model_len=MAX_MODEL_LEN,
        speculation="off",
        **numerics,
    )
    return [engine.generate(prompt, params)[0] for prompt, params in work]


def compare(path: Path, work: list[Work], alone: list[Completion], load: dict[str, Any], rng: random.Random) -> Census:
    """Serve the requests together, with drafts, and raise AssertionError if a completion differs."""
    engine = GrammarEngine(path, max_model_len=MAX_MODEL_LEN, **load)
    engine._engine.scheduler.drafter = _drafter(rng, alone)
    engine._engine._masks = MaskBudget(float("inf"))  # drafts do not depend on the speed of the machine
    census = Census()
    _watch_results(engine, census)
    for index, completion in _serve(engine, work, rng, census).items():
        for name in ("token_ids", "logprobs", "prompt_logprobs", "finish_reason", "error", "expert_routing"):
            assert getattr(completion, name) == getattr(alone[index], name), (index, name, load)
        assert completion.expert_prompt_tokens == alone[index].expert_prompt_tokens, (index, load)
        census.requests += 1
        census.stops += completion.finish_reason == "stop"
    return census


def _watch_results(engine: LocalEngine, census: Census) -> None:
    scheduler = engine._engine.scheduler
    apply = scheduler.apply

    def watched(plan: StepPlan, result: StepResult, now: float) -> list[RequestOutput]:
        census.take_result(plan, result)
        return apply(plan, result, now)

    scheduler.apply = watched  # type: ignore[method-assign]


def _drafter(rng: random.Random, alone: list[Completion]) -> Drafter:
    if rng.random() < 0.3:
        return EagerDrafter()
    return GuessingDrafter(rng, lambda request: alone[request.request_id - 1].token_ids, VOCAB)


def _serve(engine: LocalEngine, work: list[Work], rng: random.Random, census: Census) -> dict[int, Completion]:
    """Serve requests that arrive a few at a time and abort some; return the others by their index in `work`."""
    completions: dict[int, Completion] = {}
    num_added = 0
    while num_added < len(work) or engine.has_work():
        for prompt, params in work[num_added : num_added + rng.choice((0, 0, 1, 6))]:
            completions[engine.add(prompt, params)] = Completion(prompt)
            num_added += 1
        step = engine._engine.step()
        census.take(step.stats)
        for output in step.outputs:
            assert completions[output.request_id].finish_reason is None, "an output after the end"
            _extend(completions[output.request_id], output)
        doomed = rng.randint(1, 40 * len(work))
        if doomed in completions and completions[doomed].finish_reason is None:
            engine.abort(doomed)
            del completions[doomed]
    assert engine.stats.num_blocks_held == 0
    engine.check_integrity()
    return {request_id - 1: completion for request_id, completion in completions.items()}
