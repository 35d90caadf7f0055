"""Copies of metrics under the names that vLLM's dashboards, autoscalers and the Kubernetes inference gateway use.

The copies are made from smoe's own families during a scrape, so that the values are always the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric


@dataclass(frozen=True)
class Alias:
    """Another name of one family."""

    name: str  # as in a scrape: for a counter with _total
    labels: Mapping[str, str] = field(default_factory=dict)  # smoe's label name -> vLLM's
    only: tuple[str, tuple[str, ...]] | None = None  # label and values of the samples to keep; None keeps all


ALIASES = {
    "smoe_requests_running": Alias("vllm:num_requests_running"),
    "smoe_requests_waiting": Alias("vllm:num_requests_waiting"),
    "smoe_kv_cache_usage_ratio": Alias("vllm:kv_cache_usage_perc"),
    "smoe_cache_config_info": Alias("vllm:cache_config_info", {"num_blocks": "num_gpu_blocks"}),
    "smoe_prompt_tokens_total": Alias("vllm:prompt_tokens_total"),
    "smoe_generation_tokens_total": Alias("vllm:generation_tokens_total"),
    "smoe_prompt_tokens_cached_total": Alias("vllm:prompt_tokens_cached_total"),
    "smoe_prefix_cache_queries_total": Alias("vllm:prefix_cache_queries_total"),
    "smoe_prefix_cache_hits_total": Alias("vllm:prefix_cache_hits_total"),
    "smoe_preemptions_total": Alias("vllm:num_preemptions_total"),
    "smoe_requests_total": Alias(
        "vllm:request_success_total", {"outcome": "finished_reason"}, ("outcome", ("stop", "length", "abort"))
    ),
    "smoe_time_to_first_token_seconds": Alias("vllm:time_to_first_token_seconds"),
    "smoe_inter_token_latency_seconds": Alias("vllm:inter_token_latency_seconds"),
    "smoe_request_duration_seconds": Alias("vllm:e2e_request_latency_seconds"),
    "smoe_request_queue_seconds": Alias("vllm:request_queue_time_seconds"),
    "smoe_request_prefill_seconds": Alias("vllm:request_prefill_time_seconds"),
    "smoe_request_decode_seconds": Alias("vllm:request_decode_time_seconds"),
    "smoe_request_prompt_tokens": Alias("vllm:request_prompt_tokens"),
    "smoe_request_generation_tokens": Alias("vllm:request_generation_tokens"),
    "smoe_http_requests_total": Alias("http_requests_total", {"route": "handler"}),
}


def aliased(families: Iterable[Metric]) -> Iterator[Metric]:
    """Yield copies of the families that have an alias."""
    for family in families:
        exposed_name = f"{family.name}_total" if family.type == "counter" else family.name
        if exposed_name in ALIASES:
            yield _renamed(family, exposed_name, ALIASES[exposed_name])


def _renamed(family: Metric, exposed_name: str, alias: Alias) -> Metric:
    name = alias.name.removesuffix("_total") if family.type == "counter" else alias.name
    renamed = Metric(name, family.documentation, family.type)
    for sample in family.samples:
        if alias.only is None or sample.labels[alias.only[0]] in alias.only[1]:
            labels = {alias.labels.get(label, label): value for label, value in sample.labels.items()}
            renamed.add_sample(alias.name + sample.name.removeprefix(exposed_name), labels, sample.value)
    return renamed
