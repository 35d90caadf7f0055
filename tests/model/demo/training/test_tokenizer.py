"""The tokenizer's training text has an equal share of each domain, and chats."""

import pytest

from model.demo.training import tokenizer
from model.demo.training.chat_examples import DOMAIN_ANSWERS
from model.demo.training.corpus import Domain


def test_the_sample_has_an_equal_share_of_each_domain_and_chats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "SAMPLE_BYTES_PER_DOMAIN", 500)
    documents = {"austen": 30, "scripture": 45, "python": 100}
    line = "some words of a sentence that is long enough" + " and longer" * 9
    domains = [Domain(name, [f"{name} {line}"[:length] for _ in range(300)], []) for name, length in documents.items()]
    assert set(documents) == set(DOMAIN_ANSWERS)
    sample = tokenizer._sample(domains)
    counts = [sample.split("\n").count(domain.train[0]) for domain in domains]
    assert counts == [17, 12, 6], "as many documents as pass 500 bytes"
    assert sample.count("[INST]") >= 3000
