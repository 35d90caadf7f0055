"""Two ranks with a GPU each: their gathers, and the tokens of a small model against those of one GPU."""

import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.types import Request, SamplingParams
from tests.gpu.first_light.result import MissingPartError, Options, Row
from tests.support.checkpoints.mixtral import Shape, save_random_weights

SHAPE = Shape(dim=512, num_layers=4, num_heads=8, num_kv_heads=4, head_dim=64, hidden_dim=1024, vocab_size=2000)
TINY = Shape(dim=128, hidden_dim=144, num_heads=8, num_kv_heads=4, head_dim=16, num_experts=4, vocab_size=101)
NUM_REQUESTS, NUM_TOKENS = 6, 20


def compare_ranks(options: Options) -> list[Row]:
    """Compare two ranks with one, on GPUs with graphs and without. On a CPU by gloo, with the reference backend."""
    on_gpu = options.device == "cuda"
    if on_gpu and torch.cuda.device_count() < 2:
        raise MissingPartError("a second GPU")
    rows = [_gathers()] if on_gpu else []
    with tempfile.TemporaryDirectory() as folder:
        save_random_weights(TINY if options.tiny else SHAPE, Path(folder))
        alone = EngineConfig(
            model=folder,
            device="cuda" if on_gpu else "cpu",
            backend="triton" if on_gpu else "reference",
            dtype="bfloat16" if on_gpu else "float32",
            deterministic=on_gpu,
            max_num_seqs=4,
            max_num_batched_tokens=256,
            num_kv_blocks=200,
            max_model_len=512,
            no_programmatic_launch=not options.early,
        )
        expected = _tokens(alone)
        cases = [("two ranks", False), *([("two ranks without graphs", True)] if on_gpu else [])]  # a CPU has no graphs
        for case, is_eager in cases:
            found = _tokens(msgspec.structs.replace(alone, tensor_parallel_size=2, enforce_eager=is_eager))
            equal = sum(ours == theirs for ours, theirs in zip(found, expected, strict=True))
            rows.append({"case": case, "ok": found == expected, "requests": NUM_REQUESTS, "equal": equal})
    return rows


def _gathers() -> Row:
    """Run the checks of tests/gpu/group.py."""
    ran = subprocess.run([sys.executable, "-m", "tests.gpu.group"], capture_output=True, text=True, check=False)
    sys.stderr.write(ran.stdout + ran.stderr)
    return {"case": "gathers", "ok": ran.returncode == 0}


def _tokens(config: EngineConfig) -> list[list[int]]:
    """Return the greedy tokens of some requests."""
    engine = Engine.load(config)
    tokens: list[list[int]] = [[] for _ in range(NUM_REQUESTS)]
    try:
        for number in range(NUM_REQUESTS):
            prompt = [1, *((31 * number + 7 * position) % 97 for position in range(20 + 9 * number))]
            params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
            engine.add(Request(number, prompt, params))
        while engine.has_work():
            for output in engine.step().outputs:
                tokens[output.request_id] += output.token_ids
    finally:
        if engine.loaded.ranks is not None:
            engine.loaded.ranks.close()
    return tokens
