"""Output of `smoe explain`: a table of weights per token, one layer computed in full, and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict

from server.cli.colours import Colours
from server.cli.explain.gates import Gate, Mask, ModelShape, RoutedText
from server.cli.terminal_text import escape_controls

BARS = "▁▂▃▄▅▆▇█"
NOT_CHOSEN = "·"


def introduction(model: ModelShape, routed: RoutedText) -> list[str]:
    """Return what the tables show, in plain words."""
    return [
        f"{model.name} has {model.num_layers} layers, each with {model.num_experts} experts, of which a token takes "
        f"{model.experts_per_token}. The text has {len(routed.tokens)} tokens.",
        "In each layer the gate gives every expert a score, its logit. The k experts with the largest logits compute",
        "the token; the softmax over these k logits gives their weights; the layer adds the sum of weight x output.",
        f"Tables: a column per expert, 0 to {model.num_experts - 1}. A bar is an expert's weight, {NOT_CHOSEN} an "
        "expert that was not chosen.",
    ]


def token_table(routed: Sequence[RoutedText], index: int, colours: Colours) -> list[str]:
    """Return the lines of one token: a line per layer, a group of bars per k, with the weights of up to 2 experts."""
    first = routed[0]
    head = f"token {index} of {len(first.tokens)}: {quoted(first.tokens[index])}"
    columns = [_column(one, index) for one in routed]
    names = [f"k = {one.experts_per_token}".ljust(len(column[0])) for one, column in zip(routed, columns, strict=True)]
    lines = [colours.accent(head), colours.dim("  layer   " + "   ".join(names).rstrip())]
    for layer, cells in enumerate(zip(*columns, strict=True)):
        lines.append(f"  {layer:>5}   " + "   ".join(cells).rstrip())
    return lines


def _column(routed: RoutedText, index: int) -> list[str]:
    """Return a cell per layer, all of one width."""
    cells = [f"{bars(gate)}  {strongest(gate)}".rstrip() for gate in routed.gates[index]]
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def bars(gate: Gate) -> str:
    """Return a character per expert. Example: 4 experts, weights 0.75 and 0.25 of experts 1 and 3: "·▆·▂"."""
    heights = (gate.weight_of(expert) for expert in range(len(gate.logits)))
    chosen = set(gate.experts)
    return "".join(_bar(height) if expert in chosen else NOT_CHOSEN for expert, height in enumerate(heights))


def _bar(weight: float) -> str:
    return BARS[min(len(BARS) - 1, max(0, math.ceil(weight * len(BARS)) - 1))]


def strongest(gate: Gate) -> str:
    """Return the weights of a sparse choice in figures, "3 0.71  5 0.29"; nothing for more than two experts."""
    pairs = zip(gate.experts, gate.weights, strict=True)
    return "  ".join(f"{expert} {weight:.2f}" for expert, weight in pairs) if len(gate.experts) < 3 else ""


def worked_layer(routed: RoutedText, index: int, layer: int, mask: Mask | None) -> list[str]:
    """Return one layer's computation for one token, step by step, from its own numbers."""
    gate, k = routed.gates[index][layer], routed.experts_per_token
    off = [] if mask is None else [expert for expert, is_on in enumerate(mask[layer]) if not is_on]
    largest = gate.logits[gate.experts[0]]
    masses = [math.exp(gate.logits[expert] - largest) for expert in gate.experts]
    names = ", ".join(map(str, gate.experts))
    lines = [
        f"Layer {layer} for token {index}, {quoted(routed.tokens[index])}, at k = {k}, step by step:",
        "  1. gate logits: " + "  ".join(f"{expert}: {logit:.3f}" for expert, logit in enumerate(gate.logits)),
        f"  2. the {k} largest{_of_those_on(off)}: " + (f"experts {names}" if k > 1 else f"expert {names}"),
        f"  3. exp(logit - {largest:.3f}): " + "  ".join(f"{mass:.3f}" for mass in masses) + f"; sum {sum(masses):.3f}",
        "  4. weights, each divided by the sum: " + "  ".join(f"{weight:.3f}" for weight in gate.weights),
    ]
    terms = (f"{weight:.3f} x expert {expert}" for expert, weight in zip(gate.experts, gate.weights, strict=True))
    return [*lines, "  5. output of the layer's mixture: " + " + ".join(terms)]


def _of_those_on(off: Sequence[int]) -> str:
    return f" without {', '.join(map(str, off))}, switched off" if off else ""


def quoted(token: str) -> str:
    """Return a token in quotes, with blanks and control characters visible."""
    return escape_controls(json.dumps(token, ensure_ascii=False))


def as_json(model: ModelShape, routed: Sequence[RoutedText], mask: Mask | None) -> str:
    """Return one JSON object: the model, and per k the tokens with [token][layer] of logits, experts and weights."""
    return json.dumps({"model": asdict(model), "expert_mask": mask, "runs": [asdict(one) for one in routed]})
