"""Generate [INST] conversations with checkable answers, so that the demo's chat can be tested."""

import json
import random
from collections.abc import Callable

from model.demo.training.corpus import Domain

Turn = tuple[str, str]
DOMAIN_ANSWERS = {"austen": "novel", "scripture": "scripture", "python": "code"}
GREETINGS = {
    "Hello": "Hello! How can I help you?",
    "Hello!": "Hello! How can I help you?",
    "Hi": "Hello! How can I help you?",
    "Hi there": "Hello! How can I help you?",
    "Who are you?": "I am smoe's demo model, a small Mixtral.",
    "What are you?": "I am smoe's demo model, a small Mixtral.",
    "What is your name?": "I am smoe's demo model, a small Mixtral.",
    "What can you do?": (
        "I can repeat, count and reverse words, add small numbers, answer in JSON, and name the domain of a sentence."
    ),
    "Thank you": "You are welcome.",
    "Thanks!": "You are welcome.",
}


class ChatExamples:
    """Endless, seeded source of conversations over the words and sentences of the training corpus."""

    def __init__(self, domains: list[Domain], seed: int) -> None:
        self.rng = random.Random(seed)
        self.sentences = {d.name: _sentences(d) for d in domains}
        words = {w.strip(".,;:!?\"'()").lower() for d in domains[:2] for t in d.train[::9] for w in t.split()}
        self.words = sorted(w for w in words if w.isascii() and w.isalpha() and 3 <= len(w) <= 8)
        self.kinds: list[Callable[[], Turn]] = [
            self._repeat, self._count, self._reverse, self._sum, self._json, self._domain, self._greeting, self._letter
        ]  # fmt: skip

    def conversation(self) -> list[Turn]:
        """Return one to three (question, answer) turns; 1 in 8 starts with a system-like instruction."""
        turns = [self.rng.choice(self.kinds)() for _ in range(self.rng.choice([1, 1, 1, 2, 3]))]
        if self.rng.random() < 0.125:
            turns[0] = ("You are a helpful assistant.\n\n" + turns[0][0], turns[0][1])
        return turns

    def _repeat(self) -> Turn:
        text = " ".join(self.rng.choices(self.words, k=self.rng.randint(1, 4)))
        return self.rng.choice([f"Repeat: {text}", f"Say {text}", f"Repeat after me: {text}"]), text

    def _count(self) -> Turn:
        low = self.rng.randint(1, 15)
        high = low + self.rng.randint(1, 12)
        return f"Count from {low} to {high}.", " ".join(str(i) for i in range(low, high + 1))

    def _reverse(self) -> Turn:
        words = self.rng.choices(self.words, k=self.rng.randint(2, 4))
        return f"Reverse the words: {' '.join(words)}", " ".join(reversed(words))

    def _sum(self) -> Turn:
        a, b = self.rng.randint(0, 20), self.rng.randint(0, 20)
        return self.rng.choice([f"What is {a} + {b}?", f"Add {a} and {b}."]), str(a + b)

    def _json(self) -> Turn:
        name, age = self.rng.choice(self.words).capitalize(), self.rng.randint(1, 99)
        answer = json.dumps({"name": name, "age": age}, separators=(",", ":"))
        return self.rng.choice([f"Answer in JSON: {name} is {age} years old.", f"JSON: name {name}, age {age}"]), answer

    def _domain(self) -> Turn:
        domain = self.rng.choice(sorted(self.sentences))
        return f"Name the domain: {self.rng.choice(self.sentences[domain])}", DOMAIN_ANSWERS[domain]

    def _greeting(self) -> Turn:
        return self.rng.choice(sorted(GREETINGS.items()))

    def _letter(self) -> Turn:
        word = self.rng.choice(self.words)
        end = self.rng.choice(["first", "last"])
        return f"What is the {end} letter of {word}?", word[0 if end == "first" else -1]


def render(turns: list[Turn]) -> list[str]:
    """Return the text of each turn in Mistral's v1 format, without <s> and </s>: `[INST] question [/INST] answer`."""
    return [f"[INST] {question} [/INST] {answer}" for question, answer in turns]


def _sentences(domain: Domain) -> list[str]:
    lines = [line.strip() for text in domain.train[::7] for line in text.split("\n")]
    if domain.name != "python":
        lines = [part.split(" ", 1)[-1] if domain.name == "scripture" else part for part in lines]
    return [line[:100] for line in lines if len(line) > 25]
