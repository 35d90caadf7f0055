"""Lines about the experts of the last minute: /experts in a chat."""

from collections.abc import Mapping, Sequence
from typing import Any

BARS = " ▁▂▃▄▅▆▇█"
FULL_BAR = 4.0  # a full bar is this many times the even share


def expert_lines(usage: Mapping[str, Any]) -> list[str]:
    """Return a line per layer of GET /experts: a bar per expert (half height: twice the even share), the top expert."""
    layers = usage["layers"]
    if not layers:
        return ["this model has no experts"]
    if not sum(layers[0]["tokens"]):
        return ["no tokens in the last minute"]
    return [_layer_line(layer["layer"], layer["share"]) for layer in layers]


def _layer_line(layer: int, shares: Sequence[float]) -> str:
    heights = (round(share * len(shares) / FULL_BAR * (len(BARS) - 1)) for share in shares)
    bars = "".join(BARS[min(len(BARS) - 1, height)] for height in heights)
    top = max(range(len(shares)), key=shares.__getitem__)
    return f"layer {layer:<3}|{bars}|  most: expert {top}, {shares[top]:.0%}"
