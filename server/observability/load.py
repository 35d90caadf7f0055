"""Render the load of this server for routers: a few gauges under vLLM's names, computed at each call."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Load at this moment. Counts are choices; `block_size` is 0 until a model is loaded."""

    num_waiting: int
    num_running: int
    kv_usage: float  # fraction of the KV blocks that choices hold, 0 to 1
    block_size: int  # token positions of a KV block
    num_blocks: int


def render_load(load: Load) -> bytes:
    """Return the gauges in Prometheus' text format 0.0.4, one sample per family, at most 1 KiB.

    The names are those of the model server protocol of Kubernetes' InferencePool. Samples carry no model name, so that
    the length is bounded. The shape of the KV cache is left out until a model is loaded.
    """
    lines = [
        "# TYPE vllm:num_requests_waiting gauge",
        f"vllm:num_requests_waiting {load.num_waiting}",
        "# TYPE vllm:num_requests_running gauge",
        f"vllm:num_requests_running {load.num_running}",
        "# TYPE vllm:kv_cache_usage_perc gauge",
        f"vllm:kv_cache_usage_perc {load.kv_usage:.6f}",
    ]
    if load.block_size:
        labels = f'block_size="{load.block_size}",num_gpu_blocks="{load.num_blocks}"'
        lines += ["# TYPE vllm:cache_config_info gauge", f"vllm:cache_config_info{{{labels}}} 1"]
    return "\n".join([*lines, ""]).encode()
