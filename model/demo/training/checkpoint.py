"""Write the trained network as a Hugging Face Mixtral directory, in bf16."""

import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

from model.demo.training.network import Network, NetworkConfig

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% if not loop.first %}"
    "{{ raise_exception('the system message must come first') }}{% endif %}"
    "{% elif m['role'] == 'user' %}"
    "{% if loop.previtem is defined and loop.previtem['role'] == 'user' %}"
    "{{ raise_exception('roles must alternate user, assistant, user, ...') }}{% endif %}"
    "[INST] {% if loop.index0 == 1 and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %}"
    "{% if loop.previtem is not defined or loop.previtem['role'] != 'user' %}"
    "{{ raise_exception('roles must alternate user, assistant, user, ...') }}{% endif %}"
    " {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('unknown role') }}{% endif %}{% endfor %}"
)


def save_checkpoint(network: Network, tokenizer: sentencepiece.SentencePieceProcessor, out: Path) -> None:
    """Write model.safetensors, config.json, generation_config.json and tokenizer_config.json into `out`."""
    tensors = {}
    for name, weight in network.state_dict().items():
        name = name if name.startswith("lm_head") else f"model.{name}"
        tensors[name] = weight.detach().to(torch.bfloat16).contiguous().clone()
    save_file(tensors, out / "model.safetensors.part", metadata={"format": "pt"})
    (out / "model.safetensors.part").chmod(0o644)
    (out / "model.safetensors.part").rename(out / "model.safetensors")
    _write(out / "config.json", _config(network.config, tokenizer))
    _write(out / "generation_config.json", {"bos_token_id": tokenizer.bos_id(), "eos_token_id": tokenizer.eos_id()})
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(
        out / "tokenizer_config.json",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
        | special
        | {"model_max_length": network.config.context_len, "chat_template": CHAT_TEMPLATE},
    )


def _config(c: NetworkConfig, tokenizer: sentencepiece.SentencePieceProcessor) -> dict[str, object]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
        "vocab_size": c.vocab_size,
        "hidden_size": c.dim,
        "intermediate_size": c.hidden_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "num_local_experts": c.num_experts,
        "num_experts_per_tok": c.experts_per_token,
        "sliding_window": c.window,
        "max_position_embeddings": c.context_len,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": tokenizer.bos_id(),
        "eos_token_id": tokenizer.eos_id(),
        "router_aux_loss_coef": 0.01,
    }


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
