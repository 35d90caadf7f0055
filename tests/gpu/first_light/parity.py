"""Stage parity: logits of a random checkpoint equal those of transformers, in float32."""

import tempfile
from pathlib import Path

import torch

from model.checkpoint.config_file import load_config
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.ops.triton.ops import TritonOps
from tests.gpu.first_light.graphs import on_device
from tests.gpu.first_light.result import Options, Row
from tests.support.kernels.paged import Running, make_batch

NUM_TOKENS, BLOCK_SIZE = 90, 16


def compare_with_transformers(options: Options) -> list[Row]:
    """Compare one prompt's logits of a Mixtral and of a Mistral with random weights."""
    import transformers

    from tests.support.checkpoints.mixtral import Shape, save_random_checkpoint

    rows: list[Row] = []
    device = torch.device(options.device)
    for num_experts in (4, 0):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            save_random_checkpoint(Shape(num_experts=num_experts), path)
            theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device)
            config, _ = load_config(path)
            ours = load_model(path, config, TritonOps(torch.float32), LoadOptions(torch.float32, device))
        ids = torch.randint(config.vocab_size, (NUM_TOKENS,)).tolist()
        with torch.no_grad():
            expected = theirs(torch.tensor([ids], device=device)).logits[0].float()
        num_blocks = -(-NUM_TOKENS // BLOCK_SIZE)
        pool = KvPool(config, num_blocks + 1, BLOCK_SIZE, "float32", device)
        run = Running(ids, list(range(1, num_blocks + 1)))
        logits = ours.forward(on_device(make_batch([(run, NUM_TOKENS)], BLOCK_SIZE), device), pool)
        difference = float((logits - expected).abs().max())
        rows.append({"case": f"{num_experts} experts", "largest_difference": difference, "ok": difference < 1e-3})
    return rows
