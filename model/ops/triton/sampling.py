"""Sampling and log probabilities: one program per row, without sorting and without reading back from the device.

Computes what model/ops/reference/sampling.py defines, also in float64. A row draws among the tokens whose logit is
above a threshold, and the first few of those equal to it (model/ops/triton/sampling_threshold.py). Letters: N rows, V
vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.reference.sampling import INF, shape_logits, write_history
from model.ops.triton.launch import Launch, power_of_two, wait_for_inputs
from model.ops.triton.sampling_threshold import find_threshold, first_cut, key_value, sort_keys, unnormalized_probs
from model.sampling_batch import MIN_TEMPERATURE, FloatParam, IntParam, SampledRows, SamplingRows, Status

# mypy: disable-error-code="untyped-decorator"

BLOCK = 4096
COLUMNS = {  # of the parameters that draw_kernel reads
    "TEMPERATURE": int(FloatParam.TEMPERATURE),
    "TOP_P": int(FloatParam.TOP_P),
    "MIN_P": int(FloatParam.MIN_P),
    "TOP_K": int(IntParam.TOP_K),
    "TARGET": int(IntParam.TARGET),
    "SEED": int(IntParam.SEED),
    "POSITION": int(IntParam.NUM_TOKENS),
    "PROMPT": int(IntParam.PROMPT_INDEX),
    "CHOICE": int(IntParam.CHOICE_INDEX),
}


@triton.jit
def top_token(row: tl.tensor, vocab_size: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return the largest logit and the lowest id that has it."""
    largest = tl.max(tl.full((BLOCK,), float("-inf"), dtype=tl.float32))
    best = tl.min(tl.full((BLOCK,), 2147483647, dtype=tl.int32))
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        block = tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))
        top = tl.max(block)
        first = tl.min(tl.where((block == top) & (ids < vocab_size), ids, 2147483647))
        best = tl.where(top > largest, first, tl.where(top == largest, tl.minimum(best, first), best))
        largest = tl.maximum(largest, top)
    return largest, best


@triton.jit
def filter_tokens(
    distribution: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    scratch: tl.tensor,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the threshold of the kept tokens, how many of those equal to it are kept, and the sum of all kept probs.

    Without top_k and top_p all keys are above the threshold, -1, and no search is made.
    """
    vocab_size = distribution[4]
    threshold = tl.full((), -1, dtype=tl.int64)
    kept_ties = tl.full((), 0.0, dtype=tl.float64)
    cut_key, cut_count, cut_mass, total = first_cut(distribution, BLOCK)
    cut = (cut_key, cut_count, cut_mass)
    if (top_k > 0) & (top_k < vocab_size):
        threshold, count, mass, ties = find_threshold(distribution, top_k, cut, scratch, False, BLOCK, CANDIDATES)
        kept_ties = (top_k - count).to(tl.float64)
        total = mass + kept_ties * unnormalized_probs(key_value(threshold), distribution)
    if top_p < 1.0:
        limit = top_p * total
        least = threshold  # min_p and top_k keep no key below this
        threshold, count, mass, ties = find_threshold(distribution, limit, cut, scratch, True, BLOCK, CANDIDATES)
        tie_mass = unnormalized_probs(key_value(threshold), distribution)
        needed = tl.ceil((limit - mass) / tl.where(tie_mass > 0.0, tie_mass, 1.0))
        most = tl.where(threshold == least, kept_ties, ties.to(tl.float64))
        kept_ties = tl.minimum(tl.maximum(needed, tl.where(count == 0, 1.0, 0.0)), most)
        total = mass + tie_mass * kept_ties
    return threshold, kept_ties, total


@triton.jit
def token_at(
    distribution: tl.tensor,
    target: tl.tensor,
    threshold: tl.tensor,
    num_kept_ties: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the first token, by ascending id, at which the sum of kept probabilities exceeds `target`.

    Tokens are kept if their key is above the threshold; of those with a key equal to it, the first `num_kept_ties`.
    """
    row, _, _, _, vocab_size = distribution
    token = tl.sum(tl.zeros((BLOCK,), dtype=tl.int32))
    cumulative = tl.sum(tl.zeros((BLOCK,), dtype=tl.float64))
    ties = tl.sum(tl.zeros((BLOCK,), dtype=tl.int32))
    start = tl.full((), 0, dtype=tl.int32)
    while (start < vocab_size) & (cumulative <= target):
        ids = start + tl.arange(0, BLOCK)
        block = tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))
        keys = sort_keys(block)
        ties_here = ((keys == threshold) & (ids < vocab_size)).to(tl.int32)
        tie = ties + tl.cumsum(ties_here)
        kept = (keys > threshold) | ((ties_here != 0) & (tie.to(tl.float64) <= num_kept_ties))
        probs = tl.where(kept & (ids < vocab_size), unnormalized_probs(block, distribution), 0.0)
        running = cumulative + tl.cumsum(probs)
        token += tl.sum(((running <= target) & (ids < vocab_size)).to(tl.int32))
        cumulative += tl.sum(probs)
        ties += tl.sum(ties_here)
        start += BLOCK
    return tl.minimum(token, vocab_size - 1)


@triton.jit
def uniform(
    ints: tl.tensor, SEED: tl.constexpr, POSITION: tl.constexpr, PROMPT: tl.constexpr, CHOICE: tl.constexpr
) -> tl.tensor:
    """Return a multiple of 2^-32 in 0 .. 1, 1 excluded, as float64: the generator of model/ops/reference/philox.py.

    `ints`: pointer to the row's integer parameters, with the seed and the three parts of the counter in these columns.
    """
    word, _, _, _ = tl.philox(
        tl.load(ints + SEED),
        tl.load(ints + POSITION).to(tl.uint32),
        tl.load(ints + PROMPT).to(tl.uint32),
        tl.load(ints + CHOICE).to(tl.uint32),
        tl.full((), 0, dtype=tl.uint32),
    )
    return word.to(tl.float64) * 2.3283064365386963e-10


@triton.jit(do_not_specialize=["float_stride", "int_stride"])
def draw_kernel(
    logits: tl.tensor,
    float_params: tl.tensor,
    int_params: tl.tensor,
    tokens: tl.tensor,
    scratch: tl.tensor,
    vocab_size: tl.tensor,
    float_stride: tl.tensor,
    int_stride: tl.tensor,
    TEMPERATURE: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    TOP_K: tl.constexpr,
    TARGET: tl.constexpr,
    SEED: tl.constexpr,
    POSITION: tl.constexpr,
    PROMPT: tl.constexpr,
    CHOICE: tl.constexpr,
    MIN_TEMPERATURE: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Write tokens[row]: the most likely token, or a random one of those that min_p, top_k and top_p keep.

    Rows that score a target get 0. The logits must be finite. TEMPERATURE to CHOICE: columns of the parameters.
    """
    wait_for_inputs(EARLY)
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * vocab_size
    floats, ints = float_params + index * float_stride, int_params + index * int_stride
    temperature = tl.load(floats + TEMPERATURE)
    if tl.load(ints + TARGET) >= 0:
        tl.store(tokens + index, 0)
    else:
        largest, best = top_token(row, vocab_size, BLOCK)
        if temperature < MIN_TEMPERATURE:
            tl.store(tokens + index, best.to(tl.int64))
        else:
            min_p, top_p = tl.load(floats + MIN_P).to(tl.float64), tl.load(floats + TOP_P).to(tl.float64)
            distribution = (row, largest, 1.0 / temperature.to(tl.float64), min_p, vocab_size)
            own_scratch = scratch + index.to(tl.int64) * CANDIDATES
            top_k = tl.load(ints + TOP_K)
            threshold, kept_ties, total = filter_tokens(distribution, top_k, top_p, own_scratch, BLOCK, CANDIDATES)
            target = uniform(ints, SEED, POSITION, PROMPT, CHOICE) * total
            token = token_at(distribution, target, threshold, kept_ties, BLOCK)
            tl.store(tokens + index, token.to(tl.int64))


@triton.jit(do_not_specialize=["num_top"])
def logprobs_kernel(
    logits: tl.tensor,
    tokens: tl.tensor,
    logprob: tl.tensor,
    top_ids: tl.tensor,
    top_logprobs: tl.tensor,
    vocab_size: tl.tensor,
    num_top: tl.tensor,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr = False,
) -> None:
    """Compute log_softmax of one row in float64: of its token, and of the top num_top, ties to the lower id."""
    wait_for_inputs(EARLY)
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * vocab_size
    largest = tl.max(tl.full((BLOCK,), float("-inf"), dtype=tl.float32))
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.max(tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))))
    total = tl.sum(tl.zeros((BLOCK,), dtype=tl.float64))
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        block = tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))
        total += tl.sum(tl.exp(block.to(tl.float64) - largest.to(tl.float64)))
    reference = largest.to(tl.float64) + tl.log(total)
    own = tl.load(row + tl.load(tokens + index)).to(tl.float64)
    tl.store(logprob + index, (own - reference).to(tl.float32))
    last_key, last_id = tl.full((), 4294967296, dtype=tl.int64), tl.full((), -1, dtype=tl.int32)
    for place in range(num_top):
        key, token = tl.full((), -1, dtype=tl.int64), tl.full((), 0, dtype=tl.int32)
        for start in range(0, vocab_size, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            keys = sort_keys(tl.load(row + ids, mask=ids < vocab_size, other=float("-inf")))
            left = (ids < vocab_size) & ((keys < last_key) | ((keys == last_key) & (ids > last_id)))
            keys = tl.where(left, keys, -1)
            best = tl.max(keys)
            first = tl.min(tl.where(left & (keys == best), ids, 2147483647))
            token = tl.where(best > key, first, token)
            key = tl.maximum(key, best)
        value = tl.load(row + token).to(tl.float64) - reference
        tl.store(top_ids + index * num_top + place, token)
        tl.store(top_logprobs + index * num_top + place, value.to(tl.float32))
        last_key, last_id = key, token


def sample(launch: Launch, logits: Tensor, rows: SamplingRows) -> SampledRows:
    """Sample from logits [N, V] float32, as Ops.sample in model/ops/interface.py."""
    target = rows.int_params[:, IntParam.TARGET]
    finite = (logits < INF).all(-1) & (logits > -INF).any(-1)  # [N], also False for NaN
    clean = torch.where(finite.unsqueeze(-1), logits, 0.0)
    shaped = shape_logits(clean, rows)
    has_token = (shaped > -INF).any(-1) | (target >= 0)
    drawn = _draw(launch, torch.where(has_token.unsqueeze(-1), shaped, 0.0), rows)
    token_ids = torch.where(finite & has_token, torch.where(target >= 0, target, drawn), 0)
    write_history(rows, token_ids)
    status = torch.where(has_token, Status.DONE, Status.NO_TOKEN)
    status = torch.where(finite, status, Status.NOT_FINITE).to(torch.uint8)
    return SampledRows(token_ids, status, *_logprobs(launch, clean, token_ids, rows.max_logprobs))


def _draw(launch: Launch, logits: Tensor, rows: SamplingRows) -> Tensor:
    num_rows, vocab_size = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    floats, ints = rows.float_params, rows.int_params
    assert floats.stride(1) == ints.stride(1) == 1
    block = min(BLOCK, power_of_two(vocab_size, 16))
    scratch = torch.empty(num_rows, block, device=logits.device)
    launch(
        draw_kernel,
        (num_rows,),
        *(logits, floats, ints, tokens, scratch, vocab_size, floats.stride(0), ints.stride(0)),
        **COLUMNS,
        MIN_TEMPERATURE=MIN_TEMPERATURE,
        BLOCK=block,
        CANDIDATES=block,
        num_warps=8,  # with 16 a thread's registers spill
        num_stages=1,
    )
    return tokens


def _logprobs(launch: Launch, logits: Tensor, token_ids: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens' log probabilities [N], and ids and log probabilities of the top `count` [N, count].

    `count` -1 skips the work: the first result is zeros, the others are empty.
    """
    num_rows, vocab_size = logits.shape
    logprob = logits.new_zeros(num_rows)
    num_top = max(0, min(count, vocab_size))
    top_ids = torch.zeros(num_rows, num_top, dtype=torch.int32, device=logits.device)
    top_logprobs = logits.new_zeros(num_rows, num_top)
    if count >= 0:
        block = min(BLOCK, power_of_two(vocab_size, 16))
        arguments = (logits, token_ids, logprob, top_ids, top_logprobs, vocab_size, num_top)
        launch(logprobs_kernel, (num_rows,), *arguments, BLOCK=block, num_warps=16, num_stages=1)
    return logprob, top_ids, top_logprobs
