"""The thread pool runs each task once, and products have the same bits, also with far more threads than cores."""

import random
from pathlib import Path

import pytest
import torch

from model.ops.interface import FfnWeights
from tests.support.kernels.built import NATIVE, build_program, run
from tests.support.kernels.native_cases import ISAS, native
from tests.support.routing_requests import uniform_request

CASES = Path(__file__).parents[3] / "support" / "kernels" / "thread_pool_cases.cpp"


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_each_task_runs_once_and_the_caller_sees_what_it_wrote(sanitizer: str, tmp_path: Path) -> None:
    """In jobs of fewer and of more tasks than threads, on pools of 1 to 100 threads in one and in several groups."""
    options = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g1", "-pthread")
    program = build_program([CASES, NATIVE / "runtime" / "thread_pool.cpp"], tmp_path / "cases", *options)
    run([program, "300", str(random.getrandbits(63))])


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_64_threads_pack_and_multiply_to_the_bits_of_one(quantization: str) -> None:
    weight = torch.randn(1000, 96)
    x, gate = torch.randn(7, 96), torch.randn(4, 96)
    experts = [FfnWeights(*(torch.randn(shape) for shape in ((160, 96), (160, 96), (96, 160)))) for _ in range(4)]
    results = []
    for threads in (1, 64):
        ops = native(ISAS[-1], threads, quantization)  # type: ignore[arg-type]
        packed, moe = ops.pack_linear(weight), ops.pack_moe(gate, experts)
        request = uniform_request(7, 2)
        results.append((ops.linear(x, packed), ops.moe(x, moe, request), packed.matrices[0].panels, request.expert_ids))
    assert all(torch.equal(one, many) for one, many in zip(*results, strict=True))
