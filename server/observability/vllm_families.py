"""Histograms that vLLM's dashboards show and that are no copies of smoe's own. Exposed with its other names only."""

from engine.types import StepStats, Timing
from server.observability.metric_families import SECONDS, TOKENS, FamilyGroup, UnlockedHistogram, histogram

CHOICES = (1, 2, 5, 10, 20, 50, 100, 128)


class VllmFamilies(FamilyGroup):
    """vLLM's own histograms of requests and steps. Each choice counts as one request."""

    def __init__(self) -> None:
        self.iteration_tokens = UnlockedHistogram(
            "vllm:iteration_tokens_total", "Prompt tokens computed and tokens generated in one step.", TOKENS
        )
        self.time_per_output_token = histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time per token after the first, per choice.", SECONDS
        )
        self.inference = histogram(
            "vllm:request_inference_time_seconds", "Time from first scheduling to the end.", SECONDS
        )
        self.max_generation_len = histogram(
            "vllm:request_max_num_generation_tokens", "Generated tokens per choice.", TOKENS
        )
        self.num_choices = histogram("vllm:request_params_n", "Choices per prompt.", CHOICES)
        self.max_tokens = histogram("vllm:request_params_max_tokens", "Limit on generated tokens, per choice.", TOKENS)

    def record_step(self, stats: StepStats) -> None:
        """Count one engine step."""
        num_tokens = stats.num_prefill_tokens + stats.num_generated_tokens
        if num_tokens:
            self.iteration_tokens.observe(num_tokens)

    def record_end(self, timing: Timing, num_tokens: int, max_tokens: int | None, num_choices: int | None) -> None:
        """Count the end of one choice. `num_choices`: None for all but the first choice of a prompt."""
        self.max_generation_len.observe(num_tokens)
        if max_tokens is not None:
            self.max_tokens.observe(max_tokens)
        if num_choices is not None:
            self.num_choices.observe(num_choices)
        if timing.finished_s is None:
            return
        if timing.first_scheduled_s is not None:
            self.inference.observe(timing.finished_s - timing.first_scheduled_s)
        if timing.first_token_s is not None and num_tokens > 1:
            self.time_per_output_token.observe((timing.finished_s - timing.first_token_s) / (num_tokens - 1))
