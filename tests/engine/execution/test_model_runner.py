"""Results of a step with NaN or Inf among its logits, and the order of a step's parts."""

from typing import Any

import pytest
import torch

from engine.execution.model_runner import ModelRunner
from engine.execution.persistent_batch import PersistentBatch
from engine.execution.sampler import Sampler
from engine.scheduling.blocks.geometry import BlockGeometry
from engine.scheduling.blocks.manager import BlockManager
from engine.scheduling.blocks.pool import BlockPool
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.step_plan import RowFailed, StepPlan
from engine.types import Request, SamplingParams
from model.ops.reference.ops import ReferenceOps
from tests.support.kernels.attention_cases import Heads
from tests.support.kernels.launched_steps import chunk, launched_network, launched_pool, launched_runner

VOCAB = 10


class OneBadRow:
    """A model that computes zeros, and `bad` in the row of prompt token 7."""

    def __init__(self, bad: float) -> None:
        self.bad = bad
        self.config = Heads().config

    def forward(self, batch: Any, _pool: object) -> torch.Tensor:
        logits = torch.zeros(len(batch.logit_rows), VOCAB)
        logits[batch.token_ids[batch.logit_rows] == 7] = self.bad
        return logits


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_fails_only_its_request(bad: float, max_tokens: int) -> None:
    block_manager = BlockManager(BlockPool(8), BlockGeometry(4, None, 32), prefix_caching=True)
    scheduler = Scheduler(block_manager, max_num_seqs=4, max_num_batched_tokens=32, max_model_len=64, eos_token_ids=[])
    params = SamplingParams(max_tokens=max_tokens, prompt_logprobs=True, num_logprobs=1)
    scheduler.add(Request(1, [3, 7, 3], params))
    scheduler.add(Request(2, [3, 4, 3], params))
    requests = PersistentBatch(4, 64, 4, VOCAB, torch.device("cpu"))
    runner = ModelRunner(OneBadRow(bad), None, requests, Sampler(ReferenceOps(), requests, ()))  # type: ignore[arg-type]
    plan = scheduler.plan(0.0)
    result = runner.run(plan)
    assert isinstance(result.sampled[1], RowFailed)
    assert {output.request_id: output.finish_reason for output in scheduler.apply(plan, result, 0.0)} == {
        1: "error",
        2: "length",
    }


@pytest.mark.parametrize(("device", "order"), [("cpu", ["prepare", "forward"]), ("meta", ["forward", "prepare"])])
def test_a_gpu_computes_the_network_while_sampling_is_prepared(
    device: str, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for a GPU. On a CPU sampling is prepared first, from warm caches."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    runner = launched_runner(launched_network(torch.device(device)), launched_pool(torch.device(device)))
    calls: list[str] = []
    monkeypatch.setattr(runner.model, "forward", lambda batch, pool: calls.append("forward"))
    monkeypatch.setattr(runner.sampler, "prepare", lambda rows: calls.append("prepare"))
    runner.launch(StepPlan((chunk(0, SamplingParams(), 1),)))
    assert calls == order
