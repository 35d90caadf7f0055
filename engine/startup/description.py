"""Descriptions of a loaded engine: the Ready message for the API process, and the fingerprint of its numerics."""

import hashlib
import struct

import torch

from engine.capacity.sizing import served_dtype
from engine.config import EngineConfig
from engine.messages import Ready
from engine.startup.assembly import LoadedModel
from engine.startup.backend import Backend
from model.config import ModelConfig

NUM_DIGITS = 12  # of the digest of the weights in a fingerprint


def ready_message(config: EngineConfig, loaded: LoadedModel) -> Ready:
    """Describe the model, its effective limits and its memory to the API process."""
    model, limits = loaded.config, loaded.limits
    return Ready(
        max_model_len=limits.max_model_len,
        max_prompt_tokens=limits.max_prompt_tokens,
        vocab_size=model.vocab_size,
        eos_token_ids=list(model.eos_token_ids),
        num_parameters=model.num_parameters(),
        weight_bytes=loaded.weight_bytes,
        kv_cache_bytes=loaded.kv_block_bytes * (limits.num_blocks + 1),
        kv_bytes_per_token=model.kv_bytes_per_token(loaded.kv_dtype),
        num_blocks=limits.num_blocks,
        block_size=config.block_size,
        num_layers=model.num_layers,
        num_experts=model.num_experts,
        experts_per_token=model.experts_per_token,
        window=model.window,
        dtype=_dtype_name(loaded),
        device=str(loaded.device),
        backend=loaded.backend,
        fingerprint=fingerprint(loaded),
        phase_seconds=loaded.phase_seconds,
        warnings=list(loaded.warnings),
        quantization=loaded.quantization,
        dim=model.dim,
        embeds=model.embeds,
        generates=model.generates,
        mapped_bytes=loaded.mapped_bytes,
        checkpoint_files=loaded.checkpoint.files,
        memory_share=limits.memory_share,
        adapters=loaded.runner.adapters.digests,
        dropped_adapters=loaded.runner.adapters.dropped,
        expert_slots=loaded.experts.num_slots if loaded.experts else 0,
    )


def rank_ready_message(
    config: EngineConfig, model: ModelConfig, backend: Backend, device: torch.device, files: str
) -> Ready:
    """Describe a rank that is not the first to the process that started it: that it is ready, and what it computes
    with. Rank 0 has the limits."""
    return Ready(
        max_model_len=model.context_len,
        max_prompt_tokens=0,
        vocab_size=model.vocab_size,
        eos_token_ids=[],
        num_parameters=model.num_parameters(),
        weight_bytes=0,
        kv_cache_bytes=0,
        kv_bytes_per_token=0,
        num_blocks=0,
        block_size=config.block_size,
        num_layers=model.num_layers,
        num_experts=model.num_experts,
        experts_per_token=model.experts_per_token,
        window=model.window,
        dtype=served_dtype(config, model),
        device=str(device),
        backend=backend.name,
        fingerprint=backend.numerics,
        phase_seconds={},
        checkpoint_files=files,
    )


def fingerprint(loaded: LoadedModel) -> str:
    """Name the numerics: engines of equal fingerprints compute equal bits, except on the reference backend.

    It does not contain the package's version, so that a release with the same bits has the same fingerprint. Example:
    smoe-native.2-avx512bf16-float32-kv-float32-window-256-k-2-theta-10000-weights-0123456789ab.
    """
    model, weights = loaded.config, loaded.checkpoint.contents[:NUM_DIGITS]
    window = "none" if model.window is None else model.window
    theta = f"{model.rope_theta:.17g}{_scaling_name(model)}"
    network = f"window-{window}-k-{model.experts_per_token}-theta-{theta}-weights-{weights}"
    return f"smoe-{loaded.numerics}-{_dtype_name(loaded)}-kv-{loaded.kv_dtype}-{network}"


def _scaling_name(model: ModelConfig) -> str:
    """Name the scaling of rotary angles by a digest; nothing without one."""
    scaling = struct.pack(f"<{len(model.rope_divisors)}d", *model.rope_divisors)
    if model.rope_factor != 1:
        scaling += b"times" + struct.pack("<d", model.rope_factor)
    return f"-scaled-{hashlib.sha256(scaling).hexdigest()[:NUM_DIGITS]}" if scaling else ""


def _dtype_name(loaded: LoadedModel) -> str:
    return str(loaded.dtype).removeprefix("torch.")
