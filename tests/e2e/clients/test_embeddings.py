"""Embeddings by the clients of OpenAI, LangChain and Mistral: a server with an embedding model, beside transformers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from langchain_openai import OpenAIEmbeddings
from mistralai.client import Mistral
from pydantic import SecretStr

from tests.model.checkpoint.test_sentence_embedding import write_modules
from tests.support.checkpoints.mistral_tokenizers import checkpoint
from tests.support.checkpoints.mixtral import Shape, save_embedding_checkpoint
from tests.support.paths import DEMO
from tests.support.servers.running import RunningServer, forked_server

NAME, DIM = "e5-tiny", 32
TEXTS = ["Who comes to dinner?", "dinner", "It is a truth universally acknowledged. " * 20]
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Served:
    """A running server and the network that it serves."""

    server: RunningServer
    oracle: Any

    @property
    def base_url(self) -> str:
        return self.server.url + "/v1"

    @torch.no_grad()
    def expected(self, text: str, dimensions: int = DIM) -> list[float]:
        """Return the oracle's embedding of bos, the text and eos."""
        response = httpx.post(f"{self.server.url}/tokenize", json={"prompt": text})
        ids = [*response.json()["tokens"], 2]
        state = self.oracle(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1, :dimensions]
        return list(torch.nn.functional.normalize(state, dim=0).tolist())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path: Path = tmp_path_factory.mktemp("models") / NAME
    checkpoint(path, DEMO / "tokenizer.model", tokenizer_config={"add_eos_token": True})
    oracle = save_embedding_checkpoint(Shape(num_experts=0, vocab_size=3072, dim=DIM), path)
    with forked_server("--dtype", "float32", "--threads", "1", model=str(write_modules(path))) as server:
        yield Served(server, oracle)


def test_the_openai_client_gets_the_embeddings_of_transformers(served: Served) -> None:
    """The client asks for base64 unless told otherwise."""
    client = openai.OpenAI(base_url=served.base_url, api_key="none")
    for options in ({}, {"encoding_format": "float"}):
        reply = client.embeddings.create(model=NAME, input=TEXTS, **options)  # type: ignore[arg-type]
        for entry, text in zip(reply.data, TEXTS, strict=True):
            assert entry.embedding == pytest.approx(served.expected(text), abs=TOLERANCE)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens > 100
    short = client.embeddings.create(model=NAME, input="dinner", dimensions=8).data[0].embedding
    assert short == pytest.approx(served.expected("dinner", 8), abs=TOLERANCE)
    with pytest.raises(openai.BadRequestError, match="at most 32"):
        client.embeddings.create(model=NAME, input="dinner", dimensions=64)
    with pytest.raises(openai.BadRequestError, match="embeds texts"):
        client.completions.create(model=NAME, prompt="dinner")


def test_langchain_embeds_more_documents_than_are_in_the_engine_at_a_time(served: Served) -> None:
    embeddings = OpenAIEmbeddings(
        model=NAME, base_url=served.base_url, api_key=SecretStr("none"), check_embedding_ctx_length=False
    )
    documents = [f"{number} guests" for number in range(150)]
    vectors = embeddings.embed_documents(documents)
    assert len(vectors) == 150
    for index in (0, 64, 149):
        assert vectors[index] == pytest.approx(served.expected(documents[index]), abs=TOLERANCE)
    assert embeddings.embed_query(documents[64]) == vectors[64]


def test_mistrals_client_embeds(served: Served) -> None:
    with Mistral(api_key="none", server_url=served.server.url) as client:
        [entry] = client.embeddings.create(model=NAME, inputs=["dinner"]).data
    assert entry.embedding == pytest.approx(served.expected("dinner"), abs=TOLERANCE)


def test_scores_are_the_cosines_of_the_embeddings(served: Served) -> None:
    reply = httpx.post(f"{served.base_url}/score", json={"text_1": TEXTS[0], "text_2": TEXTS}).json()
    query = torch.tensor(served.expected(TEXTS[0]))
    expected = [float(query @ torch.tensor(served.expected(text))) for text in TEXTS]
    assert [entry["score"] for entry in reply["data"]] == pytest.approx(expected, abs=TOLERANCE)
    ranking = httpx.post(f"{served.base_url}/rerank", json={"query": TEXTS[0], "documents": TEXTS}).json()["results"]
    assert [entry["index"] for entry in ranking] == sorted(range(3), key=lambda index: -expected[index])
