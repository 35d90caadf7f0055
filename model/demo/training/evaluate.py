"""Evaluate the bundled checkpoint and write its model card.

    python -m model.demo.training.evaluate model/demo

The card has bits per byte of the held-out text, over windows of the full context; the share of tokens of each expert,
per domain and layer; the training curve as an SVG. Needs the same Debian packages as training.
"""

import argparse
import json
import math
import platform
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from model.demo.training.corpus import HELD_OUT_BOOKS, HELD_OUT_NOVEL, NOVELS, Domain, load_domains
from model.demo.training.network import Network, NetworkConfig, SparseMoe

TARGETS = {"austen": 1.9, "scripture": 1.6, "python": 1.6}  # bits per byte on held-out text
CHART_WIDTH, CHART_HEIGHT, MARGIN = 640, 280, 44


def load_network(path: Path) -> tuple[Network, sentencepiece.SentencePieceProcessor]:
    """Load a checkpoint into the training network, in float32."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
    network = Network(NetworkConfig(vocab_size=tokenizer.vocab_size()))
    weights = {
        name.removeprefix("model."): tensor.float() for name, tensor in load_file(path / "model.safetensors").items()
    }
    network.load_state_dict(weights)
    return network.eval(), tokenizer


class ExpertCounter:
    """Counter of the tokens that each layer's gate sends to each expert, for all runs of a network."""

    def __init__(self, network: Network) -> None:
        c = network.config
        self.counts = torch.zeros(c.num_layers, c.num_experts)
        for index, layer in enumerate(network.layers):
            moe = layer.block_sparse_moe
            assert isinstance(moe, SparseMoe)
            moe.gate.register_forward_hook(lambda gate, args, logits, i=index: self._count(i, logits))

    def _count(self, layer: int, logits: Tensor) -> None:
        expert_ids = logits.topk(2, dim=-1).indices.flatten()
        self.counts[layer] += expert_ids.bincount(minlength=self.counts.shape[1])

    def take_shares(self) -> Tensor:
        """Return shares [layers, experts] since the last call; each row sums to 1."""
        shares = self.counts / self.counts.sum(-1, keepdim=True)
        self.counts = torch.zeros_like(self.counts)
        return shares


@torch.no_grad()
def bits_per_byte(network: Network, tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]) -> float:
    """Return cross-entropy in bits per byte of the texts. Each is cut into separate contexts that start with <s>."""
    nats, num_bytes = 0.0, 0
    for text in texts:
        num_bytes += len(text.encode())
        for ids in _contexts(tokenizer.encode(text), tokenizer.bos_id(), network.config.context_len):
            logits, _ = network(ids[None, :-1])
            nats += float(F.cross_entropy(logits[0], ids[1:], reduction="sum"))
    return nats / math.log(2) / num_bytes


def _contexts(ids: list[int], bos: int, length: int) -> Iterator[Tensor]:
    for start in range(0, len(ids), length):
        yield torch.tensor([bos, *ids[start : start + length]])


def write_card(path: Path) -> None:
    """Write README.md and training_curve.svg into the checkpoint's folder."""
    network, tokenizer = load_network(path)
    domains = load_domains()
    counter = ExpertCounter(network)
    figures, shares = {}, {}
    for domain in domains:
        figures[domain.name] = bits_per_byte(network, tokenizer, domain.held_out)
        shares[domain.name] = counter.take_shares()
    log = [json.loads(line) for line in (path / "training_log.jsonl").read_text().splitlines()]
    (path / "training_curve.svg").write_text(_chart([(row["tokens"] / 1e6, row["loss"]) for row in log]))
    (path / "README.md").write_text(_card(network, domains, figures, shares, log[-1]))


def _card(
    network: nn.Module,
    domains: list[Domain],
    figures: dict[str, float],
    shares: dict[str, Tensor],
    last: dict[str, float],
) -> str:
    template = (Path(__file__).parent / "card.md").read_text()
    return template.format(
        size=round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1),
        domains="\n".join(_domain_row(domain, figures[domain.name]) for domain in domains),
        novel=NOVELS[HELD_OUT_NOVEL],
        books=" and ".join(sorted(HELD_OUT_BOOKS)),
        python=platform.python_version(),
        steps=f"{last['step']:,.0f}",
        tokens=f"{last['tokens'] / 1e6:.1f}",
        loss=f"{last['loss']:.3f}",
        shares="\n\n".join(f"**{name}**\n\n{_share_table(share)}" for name, share in shares.items()),
    )


def _domain_row(domain: Domain, measured: float) -> str:
    train, held_out = (sum(len(text.encode()) for text in part) for part in (domain.train, domain.held_out))
    name = domain.name
    return f"| {name} | {train / 1e6:.1f} MB | {held_out / 1e3:.0f} KB | {measured:.3f} | {TARGETS[name]} |"


def _share_table(shares: Tensor) -> str:
    head = (
        "| layer | "
        + " | ".join(f"e{e}" for e in range(shares.shape[1]))
        + " |\n"
        + "|---" * (shares.shape[1] + 1)
        + "|\n"
    )
    rows = [f"| {i} | " + " | ".join(f"{100 * s:.1f}" for s in row.tolist()) + " |" for i, row in enumerate(shares)]
    return head + "\n".join(rows)


def _chart(points: list[tuple[float, float]]) -> str:
    """Draw a line chart of loss against millions of tokens, as plain SVG."""
    most_x, most_y, least_y = points[-1][0], max(y for _, y in points), min(y for _, y in points)
    scale_x = (CHART_WIDTH - 2 * MARGIN) / most_x
    scale_y = (CHART_HEIGHT - 2 * MARGIN) / (most_y - least_y)
    place = [(MARGIN + x * scale_x, CHART_HEIGHT - MARGIN - (y - least_y) * scale_y) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in place)
    text = 'font-family="sans-serif" font-size="12" fill="#555"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}">
<rect width="100%" height="100%" fill="#fff"/>
<polyline points="{line}" fill="none" stroke="#2563eb" stroke-width="1.5"/>
<text x="{MARGIN}" y="{MARGIN - 12}" {text}>training loss, nats per token: {most_y:.2f} to {least_y:.2f}</text>
<text x="{CHART_WIDTH - MARGIN}" y="{CHART_HEIGHT - MARGIN + 24}" text-anchor="end" {text}>{most_x:.1f} M tokens</text>
<path d="M {MARGIN} {CHART_HEIGHT - MARGIN} H {CHART_WIDTH - MARGIN}" stroke="#999"/>
</svg>
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    write_card(parser.parse_args().checkpoint)
