"""Small workloads on the real kernels, to be served repeatedly while faults are injected."""

import random
from pathlib import Path
from typing import Any

import torch

from smoe import Completion, LocalEngine, SamplingParams

VOCAB, MAX_MODEL_LEN = 101, 160
Work = tuple[list[int], SamplingParams]


def load(path: Path, **settings: Any) -> LocalEngine:
    torch.set_num_threads(1)
    common = {"backend": "native", "dtype": "float32", "threads": 1, "max_model_len": MAX_MODEL_LEN, "block_size": 8}
    return LocalEngine(path, check_integrity=True, **common | settings)


def random_work(rng: random.Random, count: int) -> list[Work]:
    """Draw requests with all state that a step could advance twice: penalties, seeds, bad words, prompt scores."""
    work: list[Work] = []
    for _ in range(count):
        stem = rng.choice(work)[0][: rng.randint(0, 40)] if work and rng.random() < 0.4 else []
        prompt = stem + [rng.randrange(3, VOCAB) for _ in range(rng.choice((1, 3, 20, 50)))]
        params = SamplingParams(
            max_tokens=rng.choice((1, 8, 20)),
            temperature=rng.choice((0.0, 1.0)),
            frequency_penalty=rng.choice((0.0, 0.7)),
            repetition_penalty=rng.choice((1.0, 1.3)),
            bad_words=rng.choice(((), ((7, 8), (9,)))),
            seed=rng.randrange(2**63),
            num_logprobs=2,
            prompt_logprobs=rng.random() < 0.2,
            ignore_eos=True,
        )
        work.append((prompt, params))
    return work


def solo(engine: LocalEngine, work: list[Work]) -> list[Completion]:
    return [engine.generate(prompt, params)[0] for prompt, params in work]


def serve(engine: LocalEngine, work: list[Work], rng: random.Random) -> list[Completion]:
    """Serve all requests, which arrive a few at a time; return their completions in order."""
    ids: list[int] = []
    completions: dict[int, Completion] = {}
    while len(ids) < len(work) or engine.has_work():
        for prompt, params in work[len(ids) : len(ids) + rng.choice((0, 2, 5))]:
            ids.append(engine.add(prompt, params))
            completions[ids[-1]] = Completion(prompt)
        for output in engine.step():
            completion = completions[output.request_id]
            assert completion.finish_reason is None, "output after the end"
            completion.token_ids += output.token_ids
            completion.logprobs += output.logprobs or []
            completion.prompt_logprobs += output.prompt_logprobs or []
            completion.finish_reason, completion.error = output.finish_reason, output.error
    assert engine.stats.num_blocks_held == 0
    engine.check_integrity()
    return [completions[request_id] for request_id in ids]


def same_bits(got: Completion, alone: Completion) -> bool:
    return (got.token_ids, got.logprobs, got.prompt_logprobs, got.finish_reason) == (
        alone.token_ids,
        alone.logprobs,
        alone.prompt_logprobs,
        alone.finish_reason,
    )
