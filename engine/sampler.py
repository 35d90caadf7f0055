"""From logits to tokens and log probabilities, for all rows of a step at once.

The order of operations: log probabilities are taken from the raw logits; then repetition, frequency and presence
penalties, bias, masks; then temperature, min-p, top-k, top-p; then the inverse of the cumulative distribution over
ascending token ids. Letters: N rows, V vocabulary.
"""

import torch
from torch import Tensor

from engine.errors import GrammarError
from engine.plan import RowFailed, Sampled
from engine.sequence import Sequence
from engine.types import NOTHING_TO_SAMPLE, SamplingParams, TokenLogprobs
from model.philox import uniforms

MIN_TEMPERATURE = 1e-5  # anything lower is greedy: dividing by it would overflow
NUM_CANDIDATES = 256  # looked at first where top_k or top_p limits the choice
GROWTH = 16  # then so many times more, up to the whole vocabulary
NO_TOKEN = RowFailed(NOTHING_TO_SAMPLE)
GRAMMAR_FAILED = RowFailed("the request's grammar could not be followed any further")
NOT_FINITE = RowFailed("the model computed no finite logits for this request")


Mask = bytes | RowFailed | None  # packed allowed tokens, or why there are none; None: no grammar


class Sampler:
    """Stateless but for the ids that end a text."""

    def __init__(self, eos_token_ids: tuple[int, ...]) -> None:
        self.eos_token_ids = eos_token_ids

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> list[Sampled | RowFailed]:
        """One outcome per row of logits [N, V] float32. A row that holds NaN or +inf, or where nothing may be sampled,
        fails alone."""
        if not sequences:
            return []
        finite = (logits < float("inf")).all(-1) & (logits > float("-inf")).any(-1)  # [N], False for NaN as well
        masks = _grammar_masks(sequences)
        shaped = self._shape(logits, sequences, masks)
        possible = (shaped > float("-inf")).any(-1)
        drawable = torch.where((finite & possible).unsqueeze(-1), shaped, 0.0)  # no draw indexes by NaN
        tokens = _draw(drawable, sequences).tolist()
        outcomes: list[Sampled | RowFailed] = []
        for row, (sequence, is_finite, is_possible) in enumerate(
            zip(sequences, finite.tolist(), possible.tolist(), strict=True)
        ):
            if not is_finite:
                outcomes.append(NOT_FINITE)
            elif masks[row] is GRAMMAR_FAILED:
                outcomes.append(GRAMMAR_FAILED)
            elif not is_possible:
                outcomes.append(NO_TOKEN)
            else:
                outcomes.append(Sampled(tokens[row], _wanted_logprobs(logits[row], sequence, tokens[row])))
        return outcomes

    def _shape(self, logits: Tensor, sequences: list[Sequence], masks: list[Mask]) -> Tensor:
        """Penalties, bias and masks; a copy only where a row asks for one of them."""
        shaped = logits
        for row, sequence in enumerate(sequences):
            if _changes_logits(sequence):
                if shaped is logits:
                    shaped = logits.clone()
                self._shape_row(shaped[row], sequence)
                if isinstance(mask := masks[row], bytes):
                    _keep_allowed(shaped[row], mask)
        return shaped

    def _shape_row(self, row: Tensor, sequence: Sequence) -> None:
        """In place, [V]."""
        params = sequence.request.params
        if params.repetition_penalty != 1.0:
            _penalise_repetition(row, sequence.token_ids, params.repetition_penalty)
        if params.frequency_penalty or params.presence_penalty:
            generated = torch.tensor(sequence.token_ids[sequence.num_prompt_tokens :], dtype=torch.long)
            counts = torch.bincount(generated, minlength=len(row)).to(row)
            row -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        if params.logit_bias:
            row[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values())).to(row)
        if params.allowed_token_ids is not None:
            allowed = torch.tensor(params.allowed_token_ids, dtype=torch.long, device=row.device)
            kept = row[allowed]
            row.fill_(float("-inf"))
            row[allowed] = kept
        if params.bad_words:
            row[_completing(params.bad_words, sequence)] = float("-inf")
        if sequence.num_generated < params.min_tokens:
            row[[*self.eos_token_ids, *params.stop_token_ids]] = float("-inf")


def _changes_logits(sequence: Sequence) -> bool:
    params = sequence.request.params
    return bool(
        params.repetition_penalty != 1.0
        or params.frequency_penalty
        or params.presence_penalty
        or params.logit_bias
        or params.allowed_token_ids is not None
        or params.bad_words
        or sequence.num_generated < params.min_tokens
        or sequence.matcher is not None
    )


def _grammar_masks(sequences: list[Sequence]) -> list[Mask]:
    """One per row. A grammar that fails is its own row's fault alone."""
    masks: list[Mask] = []
    for sequence in sequences:
        try:
            matcher = sequence.matcher
            masks.append(matcher.bitmask(sequence.token_ids, sequence.num_prompt_tokens) if matcher else None)
        except GrammarError:
            masks.append(GRAMMAR_FAILED)
    return masks


def _keep_allowed(row: Tensor, mask: bytes) -> None:
    """In place, [V]: -inf where the token's bit is 0. Byte 0 is tokens 0 to 7, the lowest bit token 0."""
    octets = torch.frombuffer(bytearray(mask), dtype=torch.uint8).to(row.device).unsqueeze(-1)
    bits = (octets >> torch.arange(8, dtype=torch.uint8, device=row.device)) & 1
    row.masked_fill_(bits.view(-1)[: len(row)] == 0, float("-inf"))


def _completing(bad_words: tuple[tuple[int, ...], ...], sequence: Sequence) -> list[int]:
    """The last ids of those words whose other ids were just generated: behind 5 6, of (5, 6, 7), (6, 8) and (9,) all
    three."""
    generated = sequence.token_ids[sequence.num_prompt_tokens :]
    starts = ((word[:-1], word[-1]) for word in bad_words)
    return [last for start, last in starts if tuple(generated[len(generated) - len(start) :]) == start]


def _penalise_repetition(row: Tensor, token_ids: list[int], penalty: float) -> None:
    """Keskar et al. 2019 (CTRL), section 4.1, over prompt and output; negative logits are multiplied."""
    seen = torch.tensor(sorted(set(token_ids)), dtype=torch.long, device=row.device)
    values = row[seen]
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _draw(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """One token id per row, [N]: the best for greedy rows (ties to the lower id), a random one for the others."""
    tokens = logits.argmax(-1)
    random = [i for i, s in enumerate(sequences) if s.request.params.temperature >= MIN_TEMPERATURE]
    if random:
        rows = torch.tensor(random, device=logits.device)
        chosen = [sequences[i] for i in random]
        tokens[rows] = _draw_random(logits[rows], chosen)
    return tokens


def _draw_random(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    params = [s.request.params for s in sequences]
    probs = torch.softmax(logits / _column(logits, [p.temperature for p in params]), dim=-1)  # [N, V]
    if any(p.min_p > 0 for p in params):
        floor = probs.amax(-1, keepdim=True) * _column(probs, [p.min_p for p in params])
        probs = torch.where(probs < floor, 0.0, probs)
    draws = uniforms(
        [p.seed for p in params],
        [len(s.token_ids) for s in sequences],
        [p.prompt_index for p in params],
        [p.choice_index for p in params],
    )
    uniform = torch.from_numpy(draws).to(logits.device).unsqueeze(-1)  # [N, 1] float64
    limited = [i for i, p in enumerate(params) if p.top_k > 0 or p.top_p < 1.0]
    if not limited:
        return _invert(probs, uniform)
    tokens = torch.empty(len(params), dtype=torch.long, device=logits.device)
    free = [i for i in range(len(params)) if i not in set(limited)]
    tokens[free] = _invert(probs[free], uniform[free])
    tokens[limited] = _draw_top(probs[limited], uniform[limited], [params[i] for i in limited], NUM_CANDIDATES)
    return tokens


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first column where the cumulative probability exceeds uniform * total: [N, V], [N, 1] -> [N]."""
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)


def _draw_top(probs: Tensor, uniform: Tensor, params: list[SamplingParams], num_candidates: int) -> Tensor:
    """Draws among the top_k likeliest, and of those among the fewest that reach top_p. Ties go to the lower id.

    Sorting a whole vocabulary is slow, so only the likeliest `num_candidates` are looked at. Rows whose choice might
    reach beyond them, whose top_k does (top_p counts their mass), or whose last candidate ties with one that was kept,
    are drawn again from more.
    """
    vocab = probs.shape[-1]
    limits = [p.top_k if p.top_k > 0 else vocab for p in params]
    count = min(vocab, num_candidates)
    values, ids = _descending(probs, count)  # [N, count]
    ranks = torch.arange(count, device=probs.device)
    top_k = _column(ranks, limits)
    in_top_k = torch.where(ranks < top_k, values, 0.0)
    total = torch.where(top_k <= count, in_top_k.sum(-1, keepdim=True), probs.sum(-1, keepdim=True))
    before = in_top_k.cumsum(-1) - in_top_k  # mass of the likelier ones
    reached = before >= _column(values, [p.top_p for p in params]) * total
    kept = torch.where(reached & (ranks > 0), 0.0, in_top_k)
    by_id = ids.argsort(-1)
    tokens = ids.gather(-1, by_id).gather(-1, _invert(kept.gather(-1, by_id), uniform).unsqueeze(-1)).squeeze(-1)
    if count < vocab:
        least_kept = torch.where(kept > 0, kept, 2.0).amin(-1)
        is_open = (least_kept <= values[:, -1]) | ((count < top_k) & (top_k < vocab)).squeeze(-1)
        open_rows = is_open.nonzero().squeeze(-1).tolist()
        if open_rows:
            again = [params[i] for i in open_rows]
            tokens[open_rows] = _draw_top(probs[open_rows], uniform[open_rows], again, GROWTH * num_candidates)
    return tokens


def _descending(probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest per row and their columns, [N, count] each, descending; equal ones by ascending column."""
    ids = probs.topk(count, dim=-1, sorted=False).indices.sort(-1).values
    values, order = probs.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _column(like: Tensor, values: list[float] | list[int]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(-1)


def _wanted_logprobs(logits: Tensor, sequence: Sequence, token_id: int) -> TokenLogprobs | None:
    count = sequence.request.params.num_logprobs
    return None if count is None else token_logprobs(logits, token_id, count)


def token_logprobs(logits: Tensor, token_id: int, count: int) -> TokenLogprobs:
    """Of one position with raw logits [V]: the given token's, and the `count` likeliest (ties to the lower id)."""
    logprobs = torch.log_softmax(logits, dim=-1)
    top_ids = _likeliest(logprobs, count)
    return TokenLogprobs(token_id, float(logprobs[token_id]), top_ids.tolist(), logprobs[top_ids].tolist())


def _likeliest(logprobs: Tensor, count: int) -> Tensor:
    """Ids of the `count` greatest of [V], descending. topk leaves ties open, so ties at the edge are settled here."""
    if not count:
        return torch.empty(0, dtype=torch.long, device=logprobs.device)
    least = logprobs.topk(min(count, len(logprobs))).values[-1]
    candidates = (logprobs >= least).nonzero().squeeze(-1)  # ascending ids
    order = logprobs[candidates].sort(descending=True, stable=True).indices
    return candidates[order[:count]]
