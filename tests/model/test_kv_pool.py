import psutil

from model.config import ModelConfig
from model.kv_pool import KvPool
from tests.support.paged import CPU

CONFIG = ModelConfig(
    architecture="MixtralForCausalLM",
    vocab_size=32000,
    dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    hidden_dim=14336,
    num_experts=8,
    experts_per_token=2,
    window=None,
    context_len=32768,
    rope_theta=1e6,
    norm_eps=1e-5,
    tied_head=False,
    dtype="bfloat16",
    bos_token_id=1,
    eos_token_ids=(2,),
)


def test_mixtral_8x7b_counts_as_published() -> None:
    assert CONFIG.num_parameters() == 46_702_792_704
    assert CONFIG.kv_bytes_per_token("bfloat16") == 128 * 1024
    assert 16 * CONFIG.kv_bytes_per_token("float32") == 4 * 1024 * 1024
    assert CONFIG.kv_bytes_per_token("int8") == 2 * 32 * 8 * (128 + 4)


def test_untouched_blocks_cost_no_memory() -> None:
    before = psutil.Process().memory_info().rss
    pool = KvPool(CONFIG, 512, 16, "bfloat16", CPU)  # 1 GiB
    assert pool.k.numel() * 2 * 2 == 1 << 30
    assert psutil.Process().memory_info().rss - before < 64 << 20
