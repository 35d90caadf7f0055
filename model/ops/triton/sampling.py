"""Sampling and log probabilities: one program per row, without sorting and without reading back from the device.

Computes what model/ops/reference/sampling.py defines, also in float64. A row draws among the tokens whose logit is
above a threshold, and the first few of those equal to it. Rows with top_k or top_p find it bit by bit, in 32 passes
over the vocabulary for each of the two. Letters: N rows, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.ops.reference.sampling import INF, shape_logits, write_history
from model.ops.triton.launch import Launch, power_of_two
from model.sampling_batch import MIN_TEMPERATURE, FloatParam, IntParam, SampledRows, SamplingRows, Status

# mypy: disable-error-code="untyped-decorator"

BLOCK = 2048


@triton.jit
def sort_keys(logits: tl.tensor) -> tl.tensor:
    """Map float32 to integers 0 .. 2^32 - 1 in the same order; -0.0 and 0.0 are equal."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def unnormalized_probs(logits: tl.tensor, largest: tl.tensor, temperature: tl.tensor, min_p: tl.tensor) -> tl.tensor:
    """Return probabilities divided by the largest one; those below min_p become 0."""
    probs = tl.exp((logits.to(tl.float64) - largest.to(tl.float64)) / temperature)
    return tl.where(probs >= min_p, probs, 0.0)


@triton.jit
def count_and_sum(
    row: tl.tensor,
    threshold: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    vocab_size: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the number of tokens with a key of at least `threshold`, and the sum of their unnormalized probs."""
    count = tl.zeros((BLOCK,), dtype=tl.int32)
    mass = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))
        above = (sort_keys(logits) >= threshold) & (ids < vocab_size)
        count += above.to(tl.int32)
        mass += tl.where(above, unnormalized_probs(logits, largest, temperature, min_p), 0.0)
    return tl.sum(count), tl.sum(mass)


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
def find_threshold(
    row: tl.tensor,
    goal: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    vocab_size: tl.tensor,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Find the largest key at or above which there are `goal` tokens, or (BY_MASS) probabilities that sum to `goal`."""
    threshold = tl.full((), 0, dtype=tl.int64)
    for bit in range(32):
        candidate = threshold + (tl.full((), 1, dtype=tl.int64) << (31 - bit))
        count, mass = count_and_sum(row, candidate, largest, temperature, min_p, vocab_size, BLOCK)
        reached = mass if BY_MASS else count
        threshold = tl.where(reached >= goal, candidate, threshold)
    return threshold


@triton.jit
def filter_tokens(
    row: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    vocab_size: tl.tensor,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the threshold of the kept tokens, how many of those equal to it are kept, and the sum of all kept probs.

    Without top_k and top_p all keys are above the threshold, -1, and no search is made.
    """
    threshold = tl.full((), -1, dtype=tl.int64)
    kept_ties = tl.full((), 0.0, dtype=tl.float64)
    if (top_k > 0) & (top_k < vocab_size):
        threshold = find_threshold(row, top_k, largest, temperature, min_p, vocab_size, False, BLOCK)
    count, mass = count_and_sum(row, threshold + 1, largest, temperature, min_p, vocab_size, BLOCK)
    total = mass
    if threshold >= 0:
        count_with_ties, mass_with_ties = count_and_sum(row, threshold, largest, temperature, min_p, vocab_size, BLOCK)
        kept_ties = (top_k - count).to(tl.float64)
        total += (mass_with_ties - mass) / (count_with_ties - count) * kept_ties
    if top_p < 1.0:
        limit = top_p * total
        least = threshold  # min_p and top_k keep no key below this
        threshold = find_threshold(row, limit, largest, temperature, min_p, vocab_size, True, BLOCK)
        threshold = tl.maximum(threshold, least)
        count, mass = count_and_sum(row, threshold + 1, largest, temperature, min_p, vocab_size, BLOCK)
        count_with_ties, mass_with_ties = count_and_sum(row, threshold, largest, temperature, min_p, vocab_size, BLOCK)
        tie_mass = (mass_with_ties - mass) / (count_with_ties - count)
        needed = tl.ceil((limit - mass) / tl.where(tie_mass > 0.0, tie_mass, 1.0))
        most = tl.where(threshold == least, kept_ties, (count_with_ties - count).to(tl.float64))
        kept_ties = tl.minimum(tl.maximum(needed, tl.where(count == 0, 1.0, 0.0)), most)
        total = mass + tie_mass * kept_ties
    return threshold, kept_ties, total


@triton.jit
def token_at(
    row: tl.tensor,
    target: tl.tensor,
    threshold: tl.tensor,
    num_kept_ties: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    vocab_size: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Return the first token, by ascending id, at which the sum of kept probabilities exceeds `target`.

    Tokens are kept if their key is above the threshold; of those with a key equal to it, the first `num_kept_ties`.
    """
    token = tl.sum(tl.zeros((BLOCK,), dtype=tl.int32))
    cumulative = tl.sum(tl.zeros((BLOCK,), dtype=tl.float64))
    ties = tl.sum(tl.zeros((BLOCK,), dtype=tl.int32))
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        block = tl.load(row + ids, mask=ids < vocab_size, other=float("-inf"))
        keys = sort_keys(block)
        ties_here = ((keys == threshold) & (ids < vocab_size)).to(tl.int32)
        tie = ties + tl.cumsum(ties_here)
        kept = (keys > threshold) | ((ties_here != 0) & (tie.to(tl.float64) <= num_kept_ties))
        probs = tl.where(kept & (ids < vocab_size), unnormalized_probs(block, largest, temperature, min_p), 0.0)
        running = cumulative + tl.cumsum(probs)
        token += tl.sum(((running <= target) & (ids < vocab_size)).to(tl.int32))
        cumulative += tl.sum(probs)
        ties += tl.sum(ties_here)
    return tl.minimum(token, vocab_size - 1)


PARAMETERS = ["temperatures", "top_ps", "min_ps", "top_ks", "targets", "seeds", "positions", "prompts", "choices"]


@triton.jit(do_not_specialize_on_alignment=PARAMETERS)  # of one row they are slices
def draw_kernel(
    logits: tl.tensor,
    temperatures: tl.tensor,
    top_ps: tl.tensor,
    min_ps: tl.tensor,
    top_ks: tl.tensor,
    targets: tl.tensor,
    seeds: tl.tensor,
    positions: tl.tensor,
    prompts: tl.tensor,
    choices: tl.tensor,
    tokens: tl.tensor,
    vocab_size: tl.tensor,
    MIN_TEMPERATURE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write tokens[row]: the most likely token, or a random one of those that min_p, top_k and top_p keep.

    Rows that score a target get 0. The logits must be finite.
    """
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * vocab_size
    temperature = tl.load(temperatures + index)
    if tl.load(targets + index) >= 0:
        tl.store(tokens + index, 0)
    else:
        largest, best = top_token(row, vocab_size, BLOCK)
        if temperature < MIN_TEMPERATURE:
            tl.store(tokens + index, best.to(tl.int64))
        else:
            divisor = temperature.to(tl.float64)
            min_p, top_p = tl.load(min_ps + index).to(tl.float64), tl.load(top_ps + index).to(tl.float64)
            threshold, kept_ties, total = filter_tokens(
                row, tl.load(top_ks + index), top_p, largest, divisor, min_p, vocab_size, BLOCK
            )
            word, _, _, _ = tl.philox(
                tl.load(seeds + index),
                tl.load(positions + index).to(tl.uint32),
                tl.load(prompts + index).to(tl.uint32),
                tl.load(choices + index).to(tl.uint32),
                tl.full((), 0, dtype=tl.uint32),
            )
            target = word.to(tl.float64) * 2.3283064365386963e-10 * total  # 2^-32
            token = token_at(row, target, threshold, kept_ties, largest, divisor, min_p, vocab_size, BLOCK)
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
) -> None:
    """Compute log_softmax of one row in float64: of its token, and of the top num_top, ties to the lower id."""
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
    float_params = [
        rows.float_params[:, column].contiguous()
        for column in (FloatParam.TEMPERATURE, FloatParam.TOP_P, FloatParam.MIN_P)
    ]
    columns = (
        IntParam.TOP_K,
        IntParam.TARGET,
        IntParam.SEED,
        IntParam.NUM_TOKENS,
        IntParam.PROMPT_INDEX,
        IntParam.CHOICE_INDEX,
    )
    int_params = [rows.int_params[:, column].contiguous() for column in columns]
    launch(
        draw_kernel,
        (num_rows,),
        *(logits, *float_params, *int_params, tokens, vocab_size),
        MIN_TEMPERATURE=MIN_TEMPERATURE,
        BLOCK=min(BLOCK, power_of_two(vocab_size, 16)),
        num_warps=8,
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
        launch(logprobs_kernel, (num_rows,), *arguments, BLOCK=block, num_warps=8, num_stages=1)
    return logprob, top_ids, top_logprobs
