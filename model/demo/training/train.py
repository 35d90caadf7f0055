"""Train the bundled checkpoint and write it in the Hugging Face layout.

    python -m model.demo.training.train OUT --minutes 105

The schedule follows elapsed time, so that the run ends on time even on a busy machine: the learning rate rises during
the first 2 %, stays constant, and falls linearly during the last half. Hidden matrices are trained by Muon (Jordan
et al. 2024), everything else by AdamW. OUT contains a usable checkpoint from the first save on.
"""

import argparse
import json
import random
import time
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor

from model.demo.training.chat_examples import ChatExamples, render
from model.demo.training.checkpoint import save_checkpoint
from model.demo.training.corpus import load_domains
from model.demo.training.network import Network, NetworkConfig
from model.demo.training.tokenizer import train_tokenizer

SEQUENCE_LEN = 512  # twice the window
BATCH_SEQUENCES = 12
SHARES = {"austen": 0.28, "scripture": 0.22, "python": 0.36, "chat": 0.14}
BALANCE_COEFFICIENT = 0.01
MUON_LR, ADAM_LR = 5e-3, 4e-3


class Batches:
    """Source of sequences of SEQUENCE_LEN + 1 ids: <s> and text of one domain, or several chats in a row."""

    def __init__(self, tokenizer: sentencepiece.SentencePieceProcessor, seed: int) -> None:
        domains = load_domains()
        self.rng = random.Random(seed)
        self.tokenizer = tokenizer
        self.chat = ChatExamples(domains, seed)
        self.streams = {}
        for domain in domains:
            ids = [[tokenizer.bos_id(), *document, tokenizer.eos_id()] for document in tokenizer.encode(domain.train)]
            self.streams[domain.name] = torch.tensor([i for document in ids for i in document])
        is_start = [tokenizer.id_to_piece(i).startswith("▁") for i in range(tokenizer.vocab_size())]
        self.is_start = torch.tensor(is_start)  # [V] pieces that start a word

    def draw(self) -> Tensor:
        """Draw one batch [B, S + 1] of int64 ids."""
        kinds = self.rng.choices(list(SHARES), weights=list(SHARES.values()), k=BATCH_SEQUENCES)
        return torch.stack([self._chats() if kind == "chat" else self._text(kind) for kind in kinds])

    def _text(self, domain: str) -> Tensor:
        stream = self.streams[domain]
        start = self.rng.randrange(len(stream) - SEQUENCE_LEN)
        while not self.is_start[stream[start]] and start + SEQUENCE_LEN < len(stream):
            start += 1
        start = min(start, len(stream) - SEQUENCE_LEN)
        return torch.cat([torch.tensor([self.tokenizer.bos_id()]), stream[start : start + SEQUENCE_LEN]])

    def _chats(self) -> Tensor:
        ids: list[int] = []
        while len(ids) <= SEQUENCE_LEN:
            ids.append(self.tokenizer.bos_id())
            for text in render(self.chat.conversation()):
                ids += [*self.tokenizer.encode(text), self.tokenizer.eos_id()]
        return torch.tensor(ids[: SEQUENCE_LEN + 1])


def rate(progress: float) -> float:
    """Return the factor of the learning rate at a share 0 .. 1 of the run: warm-up, plateau, linear decay to zero."""
    return min(1.0, progress / 0.02, 2.0 * (1.0 - progress))


def optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Create Muon for the layers' matrices and AdamW for embedding, head, gates and norms."""
    hidden = [p for n, p in network.layers.named_parameters() if p.dim() == 2 and "gate" not in n]
    hidden_ids = {id(p) for p in hidden}
    rest = [p for p in network.parameters() if id(p) not in hidden_ids]
    muon = torch.optim.Muon(hidden, lr=MUON_LR, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return [muon, adam]


def train(out: Path, minutes: float, seed: int) -> None:
    """Train for `minutes`; save every ten minutes, and append a line to OUT/training_log.jsonl every 50 steps."""
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.model").exists():
        train_tokenizer(load_domains(), out / "tokenizer.model")
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(out / "tokenizer.model"))
    batches = Batches(tokenizer, seed)
    network = Network(NetworkConfig(vocab_size=tokenizer.vocab_size()))
    optimizer_list = optimizers(network)
    log = (out / "training_log.jsonl").open("w")
    start = saved = time.monotonic()
    step = 0
    losses: list[float] = []
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for optimizer in optimizer_list:
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * rate(progress)
        losses.append(train_step(network, optimizer_list, batches.draw()))
        step += 1
        if step % 50 == 0:
            seconds = round(time.monotonic() - start)
            record: dict[str, float] = {
                "step": step,
                "tokens": step * BATCH_SEQUENCES * SEQUENCE_LEN,
                "seconds": seconds,
            }
            record["loss"] = round(sum(losses) / len(losses), 4)
            print(json.dumps(record), file=log, flush=True)
            losses = []
        if time.monotonic() - saved > 600:
            save_checkpoint(network, tokenizer, out)
            saved = time.monotonic()
    save_checkpoint(network, tokenizer, out)


def train_step(network: Network, optimizer_list: list[torch.optim.Optimizer], ids: Tensor) -> float:
    """Do one update on a batch [B, S + 1]; return the mean next-token loss in nats."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, balance = network(ids[:, :-1])
    loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    (loss + BALANCE_COEFFICIENT * balance).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in optimizer_list:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=105)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.out, args.minutes, args.seed)
