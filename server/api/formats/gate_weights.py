"""Gate logits of a reply, and the weights of the chosen experts, which follow from them."""

import math
from collections.abc import Mapping, Sequence

from engine.gate_logits import by_layer
from engine.types import ExpertIds
from server.generation.choice import Delta


def gate_fields(delta: Delta) -> Mapping[str, object]:
    """Return the fields of a choice: `gate_logits` [token][layer][experts], `expert_weights` [token][layer][k]."""
    positions = [by_layer(packed, len(layers)) for packed, layers in zip(delta.gates, delta.routing, strict=True)]
    weights = [
        [expert_weights(logits, chosen) for logits, chosen in zip(layers, routing, strict=True)]
        for layers, routing in zip(positions, delta.routing, strict=True)
    ]
    return {"gate_logits": positions, "expert_weights": weights}


def expert_weights(logits: Sequence[float], chosen: ExpertIds) -> list[float]:
    """Return the softmax over the logits of the chosen experts (Jiang et al. 2024, section 2.1), in their order.

    Example: logits [1, 3, 0, 3] and experts 1 and 3 -> [0.5, 0.5].
    """
    largest = max(logits[expert] for expert in chosen)
    masses = [math.exp(logits[expert] - largest) for expert in chosen]
    total = sum(masses)
    return [mass / total for mass in masses]
