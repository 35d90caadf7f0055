"""The bound on grammar parsers in a running engine: the end of a request makes room for the next one's parser."""

from pathlib import Path

import pytest
import torch

from engine.grammars.build_queue import GrammarQueue
from engine.grammars.matcher import GrammarCompiler
from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint
from tests.support.conditions import wait_until
from tests.support.speculation.drafted_grammars import (
    END,
    VOCAB,
    VOCABULARY,
    GrammarEngine,
    GrammarParams,
    serialized,
)


@pytest.mark.parametrize("is_ahead", [False, True])
def test_a_grammar_beyond_the_bound_waits_for_the_end_of_a_request_and_for_nothing_else(
    is_ahead: bool, tmp_path: Path
) -> None:
    """Also if no other request starts: the rows of ended requests are kept until others need them."""
    torch.set_num_threads(1)
    save_random_checkpoint(Shape(), tmp_path)
    engine = GrammarEngine(tmp_path, threads=1, num_kv_blocks=16, max_model_len=64, async_scheduling=is_ahead)
    engine._engine._grammars = GrammarQueue(GrammarCompiler(VOCABULARY, VOCAB, (END,)), num_parsers=1)
    params = GrammarParams(max_tokens=3, grammar=serialized("start: /[a-z]+/"))
    open_ids = {engine.add([5, 6], params) for _ in range(3)}

    def have_ended() -> bool:
        open_ids.difference_update(output.request_id for output in engine.step() if output.finish_reason)
        return not open_ids

    wait_until(have_ended)
