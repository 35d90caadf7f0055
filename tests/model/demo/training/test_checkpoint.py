"""A saved checkpoint loads into the serving network, which gives the training network's logits."""

from pathlib import Path

import sentencepiece
import torch

from model.checkpoint.config_file import load_config
from model.demo.training.checkpoint import save_checkpoint
from model.demo.training.network import Network, NetworkConfig
from model.loader import LoadOptions, load_model
from model.ops.reference.ops import ReferenceOps
from tests.support.kernels.paged import CPU, teacher_forced
from tests.support.paths import DEMO

CONFIG = NetworkConfig(
    dim=24, num_layers=2, num_heads=3, num_kv_heads=1, head_dim=8, hidden_dim=20, num_experts=4, window=5
)


def test_the_serving_network_gives_the_logits_of_the_training_network(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Network(CONFIG).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.bfloat16())  # the checkpoint is bfloat16
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    save_checkpoint(network, tokenizer, tmp_path)
    config, warnings = load_config(tmp_path)
    assert (config.window, config.num_experts, config.eos_token_ids, warnings) == (5, 4, (2,), [])
    model = load_model(tmp_path, config, ReferenceOps(), LoadOptions(torch.float32, CPU))
    ids = torch.randint(CONFIG.vocab_size, (17,)).tolist()
    with torch.no_grad():
        expected, _ = network(torch.tensor([ids]))
    [logits] = teacher_forced(model, [ids], [4])
    assert torch.allclose(logits, expected[0], atol=1e-4)
