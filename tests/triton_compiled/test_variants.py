"""No step compiles a kernel after the load: the variants of all steps are few, and the load's steps have them all."""

import random
from collections import Counter
from itertools import pairwise

import pytest
import torch

from engine.config import EngineConfig
from engine.startup.kernel_compilation import launch_steps
from model.forward_batch import ForwardBatch, Routing
from model.kv_pool import KvPool
from model.ops.triton.ops import TritonOps
from model.ops.triton.packed_weights import WeightFormat
from tests.triton_compiled.decode_launches import count_launches
from tests.triton_compiled.layer import BLOCK_SIZE, META, meta_model, sampling_rows
from tests.triton_compiled.recording import LaunchRecorder, empty

NUM_LAYERS = 2
MAX_VARIANTS, MAX_LAUNCHES = 30, 10
WIDEST = 2048  # blocks of a sequence


def _mixed_step(rng: random.Random) -> ForwardBatch:
    """Build a step of random sizes: decoding rows, chunks, or both; experts per token from 1 to 8; masks."""
    num_sequences = rng.choice((1, 2, 3, 7, 16, 33, 100, 256))
    num_rows = rng.choice((num_sequences, num_sequences + rng.randrange(1, 2048)))
    max_k = rng.choice((1, 2, 2, 2, 3, 8))
    is_masked = rng.random() < 0.3
    rows, small = empty(num_rows, dtype=torch.int64), empty(num_sequences, dtype=torch.int32)
    routing = Routing(
        empty(num_rows, dtype=torch.int32),
        empty(3, NUM_LAYERS, 8, dtype=torch.bool) if is_masked else None,
        rows if is_masked else None,
        empty(NUM_LAYERS, num_rows, max_k, dtype=torch.int32),
    )
    return ForwardBatch(
        rows,
        rows,
        rows,
        empty(num_sequences + 1, dtype=torch.int32),
        small,
        empty(num_sequences, rng.randrange(1, WIDEST + 1), dtype=torch.int32),
        empty(rng.randrange(1, num_sequences + 1), dtype=torch.int64),
        routing,
    )


@pytest.mark.parametrize("weight_format", ["plain", "fp8"])
def test_the_load_launches_every_variant_that_a_step_needs_and_they_are_few(
    weight_format: WeightFormat, scale: int
) -> None:
    recorder = LaunchRecorder()
    model = meta_model(TritonOps(torch.bfloat16, weight_format, launch=recorder), NUM_LAYERS)
    pool = KvPool(model.config, 8, BLOCK_SIZE, "bfloat16", META)
    config = EngineConfig(model="", max_num_seqs=256, block_size=BLOCK_SIZE, max_model_len=WIDEST * BLOCK_SIZE)
    launch_steps(config, model, "bfloat16", 2048)
    names = Counter(launched.name for launched in recorder.variants.values())
    assert names.total() <= MAX_VARIANTS, names
    loaded = set(recorder.variants)
    rng = random.Random(0)
    for _ in range(60 * scale):
        logits = model.forward(_mixed_step(rng), pool)
        model.ops.sample(logits, sampling_rows(len(logits), rng.choice((-1, 0, 1, 5))))
    assert set(recorder.variants) == loaded, set(recorder.variants) - loaded


@pytest.mark.parametrize("num_rows", [1, 8, 64])
@pytest.mark.parametrize("weight_format", ["plain", "int8", "fp8"])
def test_a_layer_launches_at_most_10_kernels(weight_format: WeightFormat, num_rows: int) -> None:
    """A second layer adds its own launches: Triton's, and those of torch's ops that compute something."""
    assert MAX_LAUNCHES == 10
    counts = [count_launches(weight_format, num_rows, num_layers) for num_layers in (1, 2, 3)]
    per_layer = {second - first for first, second in pairwise(counts)}
    assert len(per_layer) == 1 and 5 <= per_layer.pop() <= MAX_LAUNCHES
