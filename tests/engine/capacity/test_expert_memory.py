"""Memory that a plan of experts leaves to steps."""

from engine.capacity.expert_memory import _step_bytes
from engine.config import EngineConfig
from tests.support.kernels.attention_cases import Heads


def test_the_logits_of_drafts_which_are_kept_are_planned() -> None:
    """16 requests with 256 drafted tokens; with 100, no more than 64 have drafts."""
    model = Heads().config
    for num_requests, num_rows in ((16, 272), (100, 320)):
        with_drafts, without = (
            _step_bytes(EngineConfig(model="", max_num_seqs=num_requests, speculation=mode), model)
            for mode in ("auto", "off")
        )
        assert with_drafts - without == 4 * num_rows * model.vocab_size
