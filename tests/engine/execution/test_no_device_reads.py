"""Launching a step never waits for the device.

The step runs on torch's meta device, whose tensors have no numbers: whatever reads one on the host raises.
"""

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from engine.execution.model_runner import ModelRunner
from engine.scheduling.step_plan import StepPlan
from engine.types import SamplingParams
from tests.support.kernels.launched_steps import PARAMS, chunk, chunks, launched_network, launched_pool, launched_runner

META = torch.device("meta")


def _runner() -> ModelRunner:
    return launched_runner(launched_network(META), launched_pool(META))


@pytest.fixture(autouse=True)
def _no_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("length", [1, 5], ids=["decode", "prompt"])
def test_a_step_is_launched_without_reading_from_the_device(params: SamplingParams, length: int) -> None:
    runner = _runner()
    plan = StepPlan(chunks(params, length))
    for _ in range(2):  # the second step reuses the first one's arrays
        runner.launch(plan)


def test_embeddings_are_launched_without_reading_from_the_device() -> None:
    embedded = chunk(0, SamplingParams(max_tokens=0), 5, embedding_len=64)
    step = _runner().launch(StepPlan((replace(embedded, samples=False), chunk(1, SamplingParams(), 1))))
    assert step.embeddings is not None


def test_blocks_are_cleared_without_reading_from_the_device() -> None:
    _runner().zero_blocks((1, 2))


def test_the_meta_device_notices_reads() -> None:
    counts = torch.from_numpy(np.array([1, 2])).to(META)
    with pytest.raises((RuntimeError, NotImplementedError)):
        counts.tolist()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.arange(2, device=META).repeat_interleave(counts)
