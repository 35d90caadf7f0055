"""The definition of sampling, in plain torch on any device.

The order of operations: log probabilities are taken from the raw logits; then repetition, frequency and presence
penalties, bias, masks; then temperature, min-p, top-k, top-p; then the inverse of the cumulative distribution over
ascending token ids. What is compared is in float64, so that an implementation with an exp of its own gives the same
token. Letters: N rows, V vocabulary.
"""

import torch
from torch import Tensor

from model.ops.reference.philox import uniforms
from model.sampling_batch import MIN_TEMPERATURE, FloatParam, IntParam, SampledRows, SamplingRows, Status

INF = float("inf")


def sample(logits: Tensor, rows: SamplingRows) -> SampledRows:
    """logits [N, V] float32; see model.ops.Ops.sample."""
    given = rows.int_params[:, IntParam.TARGET]
    finite = (logits < INF).all(-1) & (logits > -INF).any(-1)  # [N], False for NaN as well
    shaped = shape_logits(torch.where(finite.unsqueeze(-1), logits, 0.0), rows)
    possible = (shaped > -INF).any(-1) | (given >= 0)
    drawn = _draw(torch.where(possible.unsqueeze(-1), shaped, 0.0), rows)
    token_ids = torch.where(finite & possible, torch.where(given >= 0, given, drawn), 0)
    write_history(rows, token_ids)
    status = torch.where(possible, Status.DONE, Status.NO_TOKEN)
    status = torch.where(finite, status, Status.NOT_FINITE).to(torch.uint8)
    return SampledRows(token_ids, status, *_logprobs(logits, token_ids, rows.max_logprobs))


def write_history(rows: SamplingRows, token_ids: Tensor) -> None:
    is_sampled = rows.int_params[:, IntParam.TARGET] < 0
    place = rows.int_params[:, IntParam.HISTORY_ROW], rows.int_params[:, IntParam.NUM_TOKENS]
    rows.history[place] = torch.where(is_sampled, token_ids.int(), rows.history[place])


def shape_logits(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Penalties, bias and masks. [N, V] -> [N, V]."""
    if rows.has_penalties:
        logits = _bounded(_penalize(logits, rows))
    if len(rows.bias_ids):
        owners = torch.arange(len(logits), device=logits.device).repeat_interleave(
            rows.int_params[:, IntParam.END_BIAS] - rows.int_params[:, IntParam.FIRST_BIAS]
        )
        logits = _bounded(logits.index_put((owners, rows.bias_ids.long()), rows.bias_values, accumulate=True))
    if rows.masks is not None:
        logits = logits.masked_fill(
            ~_allowed(rows.masks, rows.int_params[:, IntParam.MASK_ROW], logits.shape[-1]), -INF
        )
    return logits


def _bounded(logits: Tensor) -> Tensor:
    """Extreme penalties and biases must not make an infinity: there is no telling infinities apart."""
    return logits.clamp(max=torch.finfo(logits.dtype).max)


def _penalize(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Repetition over prompt and output (Keskar et al. 2019, CTRL, section 4.1), the others over the output alone."""
    history = rows.history[rows.int_params[:, IntParam.HISTORY_ROW]].long()  # [N, L]
    positions = torch.arange(history.shape[1], device=history.device)
    is_there = positions < rows.int_params[:, IntParam.NUM_TOKENS, None]
    is_output = is_there & (positions >= rows.int_params[:, IntParam.NUM_PROMPT_TOKENS, None])
    ids = torch.where(is_there, history, 0)
    seen = torch.zeros_like(logits).scatter_add(1, ids, is_there.float()) > 0
    counts = torch.zeros_like(logits).scatter_add(1, ids, is_output.float())
    repetition, frequency, presence = (
        rows.float_params[:, column, None] for column in list(FloatParam)[FloatParam.REPETITION :]
    )
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen & (repetition != 1.0), repeated, logits)
    return torch.where(counts > 0, logits - (frequency * counts + presence), logits)


def _allowed(masks: Tensor, mask_rows: Tensor, vocab_size: int) -> Tensor:
    """Bits to booleans: [M, W], [N] -> [N, V]."""
    bits = (masks.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=masks.device)) & 1  # [M, W, 32]
    allowed = bits.flatten(1)[:, :vocab_size].bool()
    return allowed[mask_rows.clamp(min=0)] | (mask_rows < 0).unsqueeze(-1)


def _draw(logits: Tensor, rows: SamplingRows) -> Tensor:
    """One token id per row, [N]: the best for greedy rows (ties to the lower id), a random one for the others."""
    largest = logits.amax(-1, keepdim=True)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    best = torch.where(logits == largest, ids, logits.shape[-1]).amin(-1)
    if rows.is_greedy:
        return best
    temperature = rows.float_params[:, FloatParam.TEMPERATURE]
    divisor = temperature.clamp(min=MIN_TEMPERATURE).double().unsqueeze(-1)
    masses = torch.exp((logits.double() - largest.double()) / divisor)  # [N, V], the likeliest is 1
    kept = _limit(logits, masses, rows)
    draws = uniforms(*(rows.int_params[:, c].tolist() for c in (IntParam.SEED, IntParam.NUM_TOKENS, *COUNTERS)))
    target = torch.from_numpy(draws).to(logits.device).unsqueeze(-1)
    cumulative = kept.cumsum(-1)
    random = torch.searchsorted(cumulative, target * cumulative[:, -1:], right=True).squeeze(-1)
    return torch.where(temperature < MIN_TEMPERATURE, best, random.clamp(max=logits.shape[-1] - 1))


COUNTERS = (IntParam.PROMPT_INDEX, IntParam.CHOICE_INDEX)


def _limit(logits: Tensor, masses: Tensor, rows: SamplingRows) -> Tensor:
    """The masses of what may be drawn, the others 0: those of min_p times the largest or more, of these the top_k by
    descending logit (ties to the lower id), of these the fewest that reach top_p of their mass."""
    min_p, top_p = (
        rows.float_params[:, FloatParam.MIN_P, None].double(),
        rows.float_params[:, FloatParam.TOP_P, None].double(),
    )
    top_k = rows.int_params[:, IntParam.TOP_K, None]
    masses = torch.where(masses >= min_p, masses, 0.0)
    if bool(((top_k <= 0) & (top_p >= 1.0)).all()):
        return masses
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ranked = masses.gather(-1, order)
    ranks = torch.arange(masses.shape[-1], device=masses.device)
    ranked = torch.where((top_k <= 0) | (ranks < top_k), ranked, 0.0)
    before = torch.cat((torch.zeros_like(ranked[:, :1]), ranked.cumsum(-1)[:, :-1]), dim=-1)
    limit = top_p * ranked.sum(-1, keepdim=True)
    ranked = torch.where((before < limit) | (ranks == 0) | (top_p >= 1.0), ranked, 0.0)
    return torch.zeros_like(masses).scatter(-1, order, ranked)


def _logprobs(logits: Tensor, token_ids: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens' [N], and the `count` likeliest's ids and log probabilities [N, count]; -1: nobody asks."""
    num_rows = len(logits)
    if count < 0:
        nothing = logits.new_empty(num_rows, 0)
        return logits.new_zeros(num_rows), nothing.int(), nothing
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    top_ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    of_tokens = logprobs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return of_tokens.float(), top_ids.int(), logprobs.gather(-1, top_ids).float()
