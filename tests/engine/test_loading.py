"""What the start leaves behind: nothing that a request would need."""

from pathlib import Path

import torch

from smoe import LocalEngine, SamplingParams

DEMO = Path(__file__).parent.parent.parent / "model" / "demo"


def test_measuring_the_budget_takes_no_row_from_requests() -> None:
    torch.set_num_threads(1)
    engine = LocalEngine(DEMO, max_num_seqs=1, threads=1)
    for _ in range(3):
        [completion] = engine.generate([1, 5, 6], SamplingParams(max_tokens=2, ignore_eos=True))
        assert len(completion.token_ids) == 2
