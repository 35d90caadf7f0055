"""The input of one step of the network: rows of many sequences, and how their tokens are routed to experts."""

from dataclasses import dataclass

from torch import Tensor

from model.lora.rows import AdapterRows


@dataclass(frozen=True)
class Routing:
    """Number of experts per row, experts that are switched off, and the experts that the gate chose.

    L layers, E experts, Kmax the largest experts_per_token of the batch, M masks.
    """

    experts_per_token: Tensor  # [T] int32, 1 .. E
    masks: Tensor | None  # [M, L, E] bool, True: switched on; a layer leaves at least k to each row with the mask
    mask_rows: Tensor | None  # [T] int64, index of each row's mask; None if there are no masks
    expert_ids: Tensor  # [L, T, Kmax] int32, WRITTEN by the network, as in RoutingRequest of model/ops/interface.py


@dataclass(frozen=True)
class HiddenRows:
    """Rows whose hidden state behind the final norm is needed, for embeddings. P rows, D model dim."""

    rows: Tensor  # [P] int64
    states: Tensor  # [P, D] float32, WRITTEN


@dataclass(frozen=True)
class GateRows:
    """Rows whose gate logits are needed. P rows, L layers, E experts."""

    rows: Tensor  # [P] int64
    logits: Tensor  # [L, P, E] float32, WRITTEN: of every expert, also of those that are switched off


@dataclass(frozen=True, eq=False)  # compared by identity: a backend keeps what belongs to a batch while it lives
class ForwardBatch:
    """T rows (token positions) of S sequences, computed together; all tensors are on the model's device.

    Rows of one sequence are contiguous and ascend by one position. A decoding sequence has one row, a chunk of a
    prompt has many; both kinds share a batch. M is the width of the widest block table, N the number of rows whose
    logits are needed.

    Example, block_size 4: sequence 0 decodes its position 5 and has blocks 7 and 2; sequence 1 prefills its positions
    0 and 1 into block 3. Then positions = [5, 0, 1], slot_mapping = [2*4 + 1, 3*4 + 0, 3*4 + 1],
    query_start = [0, 1, 3], context_len = [6, 2], block_tables = [[7, 2], [3, 0]]; logit_rows = [0, 2] selects the
    last row of each sequence.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, absolute
    slot_mapping: Tensor  # [T] int64, block_id * block_size + offset: the slot for the row's K and V
    query_start: Tensor  # [S + 1] int32, rows of sequence s are query_start[s]:query_start[s + 1]
    context_len: Tensor  # [S] int32, number of positions of s after this step
    block_tables: Tensor  # [S, M] int32, 0 (the null block) behind the end and in front of the sliding window
    logit_rows: Tensor  # [N] int64, may be empty
    routing: Routing | None = None  # None: the model's own number of experts per row; expert ids are not returned
    finite: Tensor | None = None  # [T] bool, WRITTEN if given: False for rows with NaN or Inf
    hidden: HiddenRows | None = None  # None: no row
    gates: GateRows | None = None  # None: no row
    adapters: AdapterRows | None = None  # None: no row has an adapter
    logits: Tensor | None = None  # [N, V] float32, WRITTEN if given: a backend may put the result there
