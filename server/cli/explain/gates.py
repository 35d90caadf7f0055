"""The gates of a model for a text, as a server reports them: per token and layer logits, experts and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.cli.chat.session import model_entry
from server.cli.client.api_client import ApiClient, ApiError

Mask = list[list[bool]]  # [layers][experts], False: switched off


@dataclass(frozen=True)
class ModelShape:
    """The served model's name and numbers."""

    name: str
    num_layers: int
    num_experts: int
    experts_per_token: int


@dataclass(frozen=True)
class Gate:
    """One layer's gate for one token."""

    logits: list[float]  # of every expert, switched off or not
    experts: list[int]  # the chosen ones, strongest first
    weights: list[float]  # of the chosen ones, in this order

    def weight_of(self, expert: int) -> float:
        """Return the expert's weight, 0 if it was not chosen."""
        return self.weights[self.experts.index(expert)] if expert in self.experts else 0.0


@dataclass(frozen=True)
class RoutedText:
    """All gates for a text, with k experts per token."""

    experts_per_token: int
    tokens: list[str]
    gates: list[list[Gate]]  # [token][layer]


def read_shape(client: ApiClient, name: str | None = None) -> ModelShape:
    """Ask the server for the model or adapter `name`, or its first. Raises ApiError, also for one without experts."""
    entry = model_entry(client, name)
    if not entry.get("num_experts"):
        raise ApiError(f"{entry['id']} has no experts, so there is no routing to explain")
    return ModelShape(entry["id"], entry["num_layers"], entry["num_experts"], entry["experts_per_token"])


def read_gates(client: ApiClient, model: ModelShape, text: str, k: int, mask: Mask | None) -> RoutedText:
    """Let the server compute a text with k experts per token. Raises ApiError."""
    fields: dict[str, Any] = {"model": model.name, "prompt": text, "echo": True, "max_tokens": 0, "logprobs": 0}
    fields |= {"experts_per_token": k, "gate_logits": True} | ({} if mask is None else {"expert_mask": mask})
    tokens: list[str] = []
    gates: list[list[Gate]] = []
    for chunk in client.stream("/v1/completions", fields):
        for choice in chunk["choices"]:
            tokens += (choice["logprobs"] or {}).get("tokens", [])
            reported = zip(choice["gate_logits"], choice["expert_routing"], choice["expert_weights"], strict=True)
            gates += [list(map(Gate, *layers)) for layers in reported]
    return RoutedText(k, tokens, gates)


def mask_without(off: Sequence[str], model: ModelShape) -> Mask | None:
    """Return the mask that switches off experts named LAYER:EXPERT; None for no names. Raises ValueError."""
    if not off:
        return None
    mask = [[True] * model.num_experts for _ in range(model.num_layers)]
    for name in off:
        layer, separator, expert = name.partition(":")
        if not (separator and layer.isdecimal() and expert.isdecimal()):
            raise ValueError(f"--off {name}: should be LAYER:EXPERT, as in 2:7")
        if int(layer) >= model.num_layers or int(expert) >= model.num_experts:
            last = f"{model.num_layers - 1}:{model.num_experts - 1}"
            raise ValueError(f"--off {name}: {model.name} has layers and experts 0:0 to {last}")
        mask[int(layer)][int(expert)] = False
    return mask


def usable_numbers(wanted: Sequence[int], model: ModelShape, mask: Mask | None) -> list[int]:
    """Return the numbers of experts per token to compare: those wanted, or 1, the model's own and all.

    Raises ValueError for a wanted number beyond the experts that the mask leaves; without wanted ones, those are left
    out.
    """
    most = model.num_experts if mask is None else min(map(sum, mask))
    if not most:
        raise ValueError("--off: every layer needs an expert that is on")
    for k in wanted:
        if not 1 <= k <= most:
            raise ValueError(f"--experts-per-token {k}: should be 1 to {most}")
    numbers = wanted or [k for k in (1, model.experts_per_token, model.num_experts) if k <= most]
    return sorted(set(numbers))
