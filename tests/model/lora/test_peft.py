"""PEFT itself as the oracle: an adapter that it saves gives the logits of the model into which it merges it."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from model.checkpoint.config_file import load_config
from model.kv_pool import KvPool
from model.loader import LoadOptions, load_model
from model.lora.load import load_adapter
from model.lora.rows import AdapterRows
from model.mixtral import Mixtral
from model.mixtral_native import NativeMixtral
from model.ops.reference.ops import ReferenceOps
from tests.support.checkpoints.mixtral import Shape, random_model, save_in_layout
from tests.support.kernels.native_cases import ISAS, native
from tests.support.kernels.paged import CPU, Running, make_batch

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CASES: dict[str, tuple[Shape, list[str], dict[str, Any]]] = {
    "attention of Mixtral": (Shape(num_experts=4), ATTENTION, {}),
    "rank-stabilized": (Shape(num_experts=4), ["q_proj", "v_proj"], {"use_rslora": True}),
    "dense": (Shape(num_experts=0), [*ATTENTION, "gate_proj", "up_proj", "down_proj"], {}),
    "ranks and scales by name": (
        Shape(num_experts=0),
        [*ATTENTION, "down_proj"],
        {
            "rank_pattern": {"q_proj": 5, r"layers\.1\.self_attn\.(k|v)_proj": 1, "proj": 7, "^model.*down_proj": 4},
            "alpha_pattern": {"model.layers.0.self_attn.o_proj": 11, ".*[qk]_proj": 2, "q_proj": 9},
        },
    ),
    "ranks and scales by name, rank-stabilized": (
        Shape(num_experts=4),
        ATTENTION,
        {"use_rslora": True, "rank_pattern": {"v_proj": 8}, "alpha_pattern": {"v_proj": 3, "o_proj": 0.5}},
    ),
    "one layer": (Shape(num_experts=0), ["o_proj", "down_proj"], {"layers_to_transform": [1]}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_adapter_saved_by_peft_gives_the_logits_of_its_merged_model(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    shape, modules, options = CASES[name]
    oracle: Any = random_model(shape)
    path = save_in_layout(oracle, tmp_path / "model")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=modules, init_lora_weights=False, **options)
    wrapped = peft.get_peft_model(oracle, config)  # with random A and B
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    token_ids = [random.Random(1).randrange(101) for _ in range(25)]
    with torch.no_grad():
        expected = wrapped.merge_and_unload()(torch.tensor([token_ids])).logits[0]
    ops = native(ISAS[-1])
    for model in (_load(path), NativeMixtral(_load(path, ops), ops)):
        adapter = load_adapter(tmp_path / "adapter", model.config)
        batch = make_batch([(Running(token_ids, list(range(1, 8))), 25)], 4)
        pool = KvPool(model.config, 8, 4, "float32", CPU)
        without = model.forward(batch, pool)
        assert (without - expected).abs().max() > 0.1, "the adapter changes nothing"
        rows = AdapterRows((adapter,), torch.zeros(25, dtype=torch.int64))
        logits = model.forward(replace(batch, adapters=rows), pool)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-4)


def _load(path: Path, ops: Any = None) -> Mixtral:
    config = load_config(path)[0]
    return load_model(path, config, ops or ReferenceOps(), LoadOptions(torch.float32, CPU))
