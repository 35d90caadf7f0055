"""One step's rows, as the network reads them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Routing:
    """How many experts the rows of a batch take, which are switched off, and which were taken in the end.

    L layers, E experts, Kmax the largest experts_per_token of the batch, M masks.
    """

    experts_per_token: Tensor  # [T] int32, 1 .. E
    masks: Tensor | None  # [M, L, E] bool, True: switched on, at least k per layer of a row that has the mask
    mask_rows: Tensor | None  # [T] int64, which of the masks a row has; None where there are no masks
    expert_ids: Tensor  # [L, T, Kmax] int32, WRITTEN by the network, as in ops.RoutingRequest


@dataclass(frozen=True)
class ForwardBatch:
    """T rows (token positions) of S sequences, computed together; all tensors are on the model's device.

    Rows of one sequence are contiguous and ascend by one position. A sequence that decodes has one row, a chunk of a
    prompt has many; they mix freely. M is the widest block table, N the number of rows whose logits are wanted.

    Example, block_size 4: sequence 0 decodes its position 5 and has blocks 7 and 2; sequence 1 prefills its positions
    0 and 1 into block 3. Then positions = [5, 0, 1], slot_mapping = [2*4 + 1, 3*4 + 0, 3*4 + 1],
    query_start = [0, 1, 3], context_len = [6, 2], block_tables = [[7, 2], [3, 0]]; logit_rows = [0, 2] asks for the
    last row of each.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, absolute
    slot_mapping: Tensor  # [T] int64, block_id * block_size + offset: where the row's K and V go
    query_start: Tensor  # [S + 1] int32, rows of sequence s are query_start[s]:query_start[s + 1]
    context_len: Tensor  # [S] int32, positions of s that exist after this step
    block_tables: Tensor  # [S, M] int32, 0 (the null block) behind the end and where the window has slid out
    logit_rows: Tensor  # [N] int64, may be empty
    routing: Routing | None = None  # None: every row takes the model's own number of experts, and nobody asks which
    finite: Tensor | None = None  # [T] bool, WRITTEN where it is given: whether all that the row computed are numbers
