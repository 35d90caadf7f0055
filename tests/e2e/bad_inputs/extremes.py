"""Legal values at their limits, for tests of all pairs of parameters."""

from typing import Any

from tests.e2e.bad_inputs.rows import VOCAB

EXTREMES: dict[str, list[Any]] = {
    "n": [1, 8],
    "temperature": [0, -0.0, 5e-324, 1e-4, 2.0],
    "top_p": [5e-324, 1.0],
    "top_k": [-1, 0, 1, 2**63 - 1],
    "min_p": [5e-324, 1.0],
    "frequency_penalty": [-2, 2, -5e-324],
    "presence_penalty": [-2, 2],
    "repetition_penalty": [5e-324, 2.0],
    "max_tokens": [0, 1, 3],
    "min_tokens": [0, 3],
    "seed": [-(2**63), 2**63 - 1],
    "logprobs": [0, 20],
    "stop": ["\0", ["e", " ", "a", "t"], "x" * 256, "\u0301"],
    "stop_token_ids": [[2], list(range(256)), [VOCAB - 1] * 256],
    "logit_bias": [{str(i): 100 for i in range(VOCAB)}, {str(i): -100 for i in range(VOCAB)}, {"2": 100}, {"0": -0.0}],
    "allowed_token_ids": [[2], [VOCAB - 1], [0] * 5000],
    "bad_words": [[" "], ["\0", "e"]],
    "truncate_prompt_tokens": [-1, 1, 2**63 - 1],
    "ignore_eos": [True],
    "echo": [True],
    "stream": [True],
    "priority": [-(2**31), 2**31 - 1],
    "experts_per_token": [1, 8],
    "structured_outputs": [{"regex": "a?"}, {"json": {}}],
    "prompt": [[0], [VOCAB - 1] * 3, "\0\u200d\U0001f600", " \n", [[1]] * 16, [5] * 32],
}
