"""GET /experts for a terminal: a bar per expert, a line per layer."""

from typing import Any

BARS = " ▁▂▃▄▅▆▇█"
FULL = 4.0  # times the even share: as high as a bar goes


def expert_lines(usage: dict[str, Any]) -> list[str]:
    """Each layer's shares as bars (half height: twice the even share), and which expert takes most."""
    layers = usage["layers"]
    if not layers:
        return ["this model has no experts"]
    if not sum(layers[0]["tokens"]):
        return ["no tokens in this time"]
    return [_line(layer["layer"], layer["share"]) for layer in layers]


def _line(layer: int, shares: list[float]) -> str:
    bars = "".join(BARS[min(len(BARS) - 1, round(share * len(shares) / FULL * (len(BARS) - 1)))] for share in shares)
    top = max(range(len(shares)), key=shares.__getitem__)
    return f"layer {layer:<3}|{bars}|  most: expert {top}, {shares[top]:.0%}"
