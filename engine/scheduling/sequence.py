"""State of one request in the engine: its tokens, how many of them are computed, and the blocks with their K and V."""

from collections.abc import Callable, Collection
from collections.abc import Sequence as Ids
from enum import Enum
from typing import Protocol

from engine.scheduling.block_hash import BlockHash, child_hash, root_hash
from engine.scheduling.expert_usage import ExpertUsage
from engine.scheduling.request_cost import output_cost
from engine.speculation.draft_source import DraftSource, Grammar
from engine.types import Request, Timing, TokenLogprobs


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Ahead(Protocol):
    """Masks behind guessed tokens. Implemented by engine.grammars.lookahead.Lookahead."""

    def mask_behind(self, token_ids: Ids[int]) -> bytes | None: ...
    def num_allowed(self, token_ids: Ids[int]) -> int: ...
    def forced_tokens(self, max_len: int, has_time: Callable[[], bool]) -> list[int]: ...


class Matcher(Protocol):
    """Position of one request in its grammar. Implemented by engine.grammars.matcher.GrammarMatcher."""

    def prepare(self, token_ids: Ids[int], start: int) -> bool: ...
    def bitmask(self, token_ids: Ids[int], start: int) -> bytes: ...
    def look_ahead(self, token_ids: Ids[int], start: int) -> Ahead | None: ...
    def draft_bitmask(self, draft: Ids[int]) -> bytes: ...
    def wait(self, timeout_s: float) -> None: ...


class DraftMasks(Protocol):
    """Masks of drafts, within a time that the engine knows. Implemented by engine.grammars.mask_budget.MaskBudget."""

    def guide(self, sequence: "Sequence") -> Grammar | None:
        """Return the grammar of a sequence that decodes, for guesses; None: it gets no draft in this step."""
        ...

    def prepare_draft(self, sequence: "Sequence", draft: Ids[int]) -> int:
        """Compute the masks of a draft's rows. Return how many of its tokens may be verified."""
        ...


class Sequence:
    """Mutable state of a request; only engine/scheduling changes it.

    Progress is three counts, num_computed <= num_scheduled <= num_tokens. Of 7 tokens with 4 computed and a chunk of 2
    in flight, num_computed is 4, num_scheduled 6, num_tokens 7. While a step that samples is in flight, num_tokens
    includes its token, which `token_ids` does not have yet.
    """

    def __init__(
        self,
        request: Request,
        order: tuple[int, int],
        max_generated: int,
        matcher: Matcher | None = None,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        """`eos_token_ids`: tokens that end any request without `ignore_eos`."""
        self.request = request
        self.request_id = request.request_id
        self.matcher = matcher  # stays valid through a preemption, which keeps the generated tokens
        self.needs_last_token = matcher is not None or request.params.constraints.has_long_words
        self.waits_for_mask = False  # sits out the next step, see engine/grammars/mask_budget.py
        self.mask_turn = 0  # number of masks, of all requests, when this one's last was computed
        self.order = order  # (priority, arrival): place among the requests of its tenant, lowest first
        self.place = 0  # in the scheduling order of all tenants, lowest first; known once admitted
        self.tenant = request.tenant
        self.output_cost = output_cost(request)  # of each generated token, for the tenant's share
        self.cache_tenant: int | None = None  # the only tenant that finds its cached blocks; None: all tenants
        self.max_generated = max_generated  # max_tokens, or fewer if the context is shorter
        params = request.params
        self.end_token_ids = frozenset(params.stop_token_ids).union(() if params.ignore_eos else eos_token_ids)
        self.status = Status.WAITING
        self.token_ids = list(request.prompt_token_ids)  # prompt, then generated tokens
        self.num_prompt_tokens = len(request.prompt_token_ids)
        self.num_computed = 0
        self.num_scheduled = 0
        self.num_pending_tokens = 0  # sampled by a step in flight, not yet in token_ids
        self.num_chunks_in_flight = 0
        self.block_table: list[int] = []  # entry i: positions i * block_size ..; 0: left the window
        self.num_evicted_blocks = 0  # leading blocks that left the window
        self.num_cached_blocks = 0  # leading blocks that were offered to the prefix index
        self.num_cached_tokens = 0  # prompt tokens taken from the prefix cache when first scheduled
        self.num_preemptions = 0
        self.drafts: DraftSource | None = None  # None: the request drafts nothing
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.experts: ExpertUsage | None = None  # None unless the request reports experts
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self._block_hashes: list[BlockHash] = []

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def last_generated_ids(self, count: int) -> list[int]:
        """Return the last `count` generated tokens, without those in flight, or all if there are fewer."""
        return self.token_ids[max(self.num_prompt_tokens, len(self.token_ids) - count) :]

    @property
    def num_to_schedule(self) -> int:
        """Positions still to be scheduled before the next token can be sampled.

        0 if the last token is already in flight, if the next one cannot be sampled before that token is known, or if
        the mask for it is computed in a later step. While a draft is in flight, more positions are scheduled than there
        are tokens; how many of them count is known when its step is applied.
        """
        if self.waits_for_mask:
            return 0
        pending, length = self.num_pending_tokens, len(self.token_ids)
        if pending and (self.needs_last_token or length - self.num_prompt_tokens + pending >= self.max_generated):
            return 0
        return max(0, length + pending - self.num_scheduled)

    @property
    def reads_prefix_cache(self) -> bool:
        """False if the request needs an output of every prompt position: cached positions are not computed."""
        request = self.request
        return not (request.params.prompt_logprobs or request.expert_usage or request.prompt_routing)

    def block_hash(self, index: int, block_size: int) -> BlockHash:
        """Return the hash of full block `index`. The chain of hashes is kept and extended as tokens arrive."""
        hashes = self._block_hashes
        while len(hashes) <= index:
            parent = hashes[-1] if hashes else self._root_hash()
            hashes.append(child_hash(parent, self.block_tokens(len(hashes), block_size)))
        return hashes[index]

    def _root_hash(self) -> BlockHash:
        request = self.request
        experts = request.experts_per_token, request.expert_mask
        return root_hash(request.cache_salt, *experts, self.cache_tenant, request.adapter)

    def block_tokens(self, index: int, block_size: int) -> tuple[int, ...]:
        """Return the tokens of full block `index`: with blocks of 16, block 2 holds tokens 32 to 47."""
        tokens = self.token_ids[index * block_size : (index + 1) * block_size]
        assert len(tokens) == block_size, "only a full block has a hash"
        return tuple(tokens)

    def slots(self, start: int, length: int, block_size: int) -> list[int]:
        """Return block_id * block_size + offset of positions that have blocks."""
        table = self.block_table
        return [
            table[position // block_size] * block_size + position % block_size
            for position in range(start, start + length)
        ]

    def restart(self) -> None:
        """Reset the computed counts, keep the generated tokens: preemption by recompute. The caller frees blocks."""
        self.status = Status.WAITING
        self.waits_for_mask = False
        self.num_computed = self.num_scheduled = self.num_evicted_blocks = self.num_cached_blocks = 0
        self.block_table = []
        self.prompt_logprobs = []
        self.num_preemptions += 1

    def timing(self, finished_s: float) -> Timing:
        return Timing(self.request.arrival_s, self.first_scheduled_s, self.first_token_s, finished_s)
