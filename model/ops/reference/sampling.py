"""Definition of sampling, in plain torch on any device.

Log probabilities come from the raw logits. The token is drawn in this order: repetition, frequency and presence
penalties, bias, masks; then temperature, min-p, top-k, top-p; then the inverse of the cumulative distribution over
ascending token ids. Comparisons are in float64, so that an implementation with another exp gives the same token.
Letters: N rows, V vocabulary.
"""

import torch
from torch import Tensor

from model.ops.reference.philox import uniforms
from model.sampling_batch import MIN_TEMPERATURE, FloatParam, IntParam, SampledRows, SamplingRows, Status

INF = float("inf")
COUNTERS = (IntParam.PROMPT_INDEX, IntParam.CHOICE_INDEX)


def sample(logits: Tensor, rows: SamplingRows) -> SampledRows:
    """Sample from logits [N, V] float32, as Ops.sample in model/ops/interface.py."""
    target = rows.int_params[:, IntParam.TARGET]
    finite = (logits < INF).all(-1) & (logits > -INF).any(-1)  # [N], also False for NaN
    shaped = shape_logits(torch.where(finite.unsqueeze(-1), logits, 0.0), rows)
    has_token = (shaped > -INF).any(-1) | (target >= 0)
    drawn = _draw(torch.where(has_token.unsqueeze(-1), shaped, 0.0), rows)
    token_ids = torch.where(finite & has_token, torch.where(target >= 0, target, drawn), 0)
    write_history(rows, token_ids)
    status = torch.where(has_token, Status.DONE, Status.NO_TOKEN)
    status = torch.where(finite, status, Status.NOT_FINITE).to(torch.uint8)
    return SampledRows(token_ids, status, *_logprobs(logits, token_ids, rows.max_logprobs))


def write_history(rows: SamplingRows, token_ids: Tensor) -> None:
    """Append the sampled tokens [N] to their requests' histories; rows with a target are not written."""
    is_sampled = rows.int_params[:, IntParam.TARGET] < 0
    place = rows.int_params[:, IntParam.HISTORY_ROW], rows.int_params[:, IntParam.NUM_TOKENS]
    rows.history[place] = torch.where(is_sampled, token_ids.int(), rows.history[place])


def shape_logits(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Apply penalties, bias and masks: [N, V] -> [N, V]."""
    if rows.has_penalties:
        logits = _bounded(_apply_penalties(logits, rows))
    if len(rows.bias_ids):
        owners = torch.arange(len(logits), device=logits.device).repeat_interleave(
            rows.int_params[:, IntParam.END_BIAS] - rows.int_params[:, IntParam.FIRST_BIAS],
            output_size=len(rows.bias_ids),  # without it a GPU would be waited for
        )
        logits = _bounded(logits.index_put((owners, rows.bias_ids.long()), rows.bias_values, accumulate=True))
    if rows.masks is not None:
        logits = logits.masked_fill(
            ~_allowed(rows.masks, rows.int_params[:, IntParam.MASK_ROW], logits.shape[-1]), -INF
        )
    return logits


def _bounded(logits: Tensor) -> Tensor:
    """Clamp logits that extreme penalties and biases made infinite: equal infinities would lose their order."""
    return logits.clamp(max=torch.finfo(logits.dtype).max)


def _apply_penalties(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Apply penalties: repetition over prompt and output (Keskar et al. 2019, section 4.1), the others over output."""
    history = rows.history[rows.int_params[:, IntParam.HISTORY_ROW]].long()  # [N, L]
    positions = torch.arange(history.shape[1], device=history.device)
    exists = positions < rows.int_params[:, IntParam.NUM_TOKENS, None]
    is_output = exists & (positions >= rows.int_params[:, IntParam.NUM_PROMPT_TOKENS, None])
    ids = torch.where(exists, history, 0)
    seen = torch.zeros_like(logits).scatter_add(1, ids, exists.float()) > 0
    counts = torch.zeros_like(logits).scatter_add(1, ids, is_output.float())
    repetition, frequency, presence = (
        rows.float_params[:, column, None] for column in list(FloatParam)[FloatParam.REPETITION :]
    )
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen & (repetition != 1.0), repeated, logits)
    return torch.where(counts > 0, logits - (frequency * counts + presence), logits)


def _allowed(masks: Tensor, mask_rows: Tensor, vocab_size: int) -> Tensor:
    """Expand mask bits to booleans: [M, W], [N] -> [N, V]."""
    bits = (masks.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=masks.device)) & 1  # [M, W, 32]
    allowed = bits.flatten(1)[:, :vocab_size].bool()
    return allowed[mask_rows.clamp(min=0)] | (mask_rows < 0).unsqueeze(-1)


def _draw(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Return one token id per row, [N]: the most likely for greedy rows (ties to the lower id), else a random one."""
    largest = logits.amax(-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    best = torch.where(logits == largest, ids, logits.shape[-1]).amin(-1)
    if rows.is_greedy:
        return best
    temperature = rows.float_params[:, FloatParam.TEMPERATURE]
    divisor = temperature.clamp(min=MIN_TEMPERATURE).double().unsqueeze(-1)
    probs = torch.exp((logits.double() - largest.double()) / divisor)  # [N, V] unnormalized, the largest is 1
    kept = _filter(logits, probs, rows)
    draws = uniforms(*(rows.int_params[:, c].tolist() for c in (IntParam.SEED, IntParam.NUM_TOKENS, *COUNTERS)))
    uniform = torch.from_numpy(draws).to(logits.device).unsqueeze(-1)
    cumulative = kept.cumsum(-1)
    random = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)
    return torch.where(temperature < MIN_TEMPERATURE, best, random.clamp(max=logits.shape[-1] - 1))


def _filter(logits: Tensor, probs: Tensor, rows: SamplingRows) -> Tensor:
    """Set the unnormalized probabilities of tokens that may not be drawn to 0.

    Keeps tokens with at least min_p times the largest probability; of these the top_k by descending logit (ties to the
    lower id); of these the fewest whose sum reaches top_p of the sum of all that are left.
    """
    min_p, top_p = (
        rows.float_params[:, FloatParam.MIN_P, None].double(),
        rows.float_params[:, FloatParam.TOP_P, None].double(),
    )
    top_k = rows.int_params[:, IntParam.TOP_K, None]
    probs = torch.where(probs >= min_p, probs, 0.0)
    if bool(((top_k <= 0) & (top_p >= 1.0)).all()):
        return probs
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ranked = probs.gather(-1, order)
    ranks = torch.arange(probs.shape[-1], device=probs.device)
    ranked = torch.where((top_k <= 0) | (ranks < top_k), ranked, 0.0)
    before = torch.cat((torch.zeros_like(ranked[:, :1]), ranked.cumsum(-1)[:, :-1]), dim=-1)
    limit = top_p * ranked.sum(-1, keepdim=True)
    ranked = torch.where((before < limit) | (ranks == 0) | (top_p >= 1.0), ranked, 0.0)
    return torch.zeros_like(probs).scatter(-1, order, ranked)


def _logprobs(logits: Tensor, token_ids: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens' log probabilities [N], and ids and log probabilities of the top `count` [N, count].

    `count` -1 skips the work: the first result is zeros, the others are empty.
    """
    num_rows = len(logits)
    if count < 0:
        nothing = logits.new_empty(num_rows, 0)
        return logits.new_zeros(num_rows), nothing.int(), nothing
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    top_ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    token_logprobs = logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return token_logprobs.float(), top_ids.int(), logprobs.gather(-1, top_ids).float()
