"""POST /v1/score and POST /v1/rerank: cosines of pairs, documents in order, errors."""

from typing import Any

import pytest

from tests.support.embedding_requests import TEXT, embedding_engine, post, vector_of
from tests.support.servers.serving import check_error, tokenizer

pytestmark = pytest.mark.anyio

URL, RERANK_URL = "/v1/score", "/v1/rerank"
DOCUMENTS = ["dinner", TEXT, "comes", TEXT]


async def test_scores_are_cosines_of_one_text_with_each_of_several() -> None:
    engine = embedding_engine()
    response = await post(engine, URL, text_1=TEXT, text_2=[TEXT, "dinner", "comes"])
    vectors = [vector_of(tokenizer().encode(text)) for text in (TEXT, "dinner", "comes")]
    expected = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors]
    body = response.json()
    assert [entry["score"] for entry in body["data"]] == pytest.approx(expected)
    assert body["data"][0] == {"object": "score", "index": 0, "score": pytest.approx(1)}
    assert len(engine.submitted) == 4, "the one text is embedded once"
    assert body["usage"]["prompt_tokens"] == sum(len(request.prompt_token_ids) for request in engine.submitted)


async def test_scores_of_pairs() -> None:
    response = await post(embedding_engine(), URL, text_1=["dinner", TEXT], text_2=["dinner", TEXT])
    assert [entry["score"] for entry in response.json()["data"]] == pytest.approx([1, 1])


BAD_SCORES: list[tuple[dict[str, Any], str, str]] = [
    ({"text_2": "a"}, "missing_required_parameter", "text_1"),
    ({"text_1": "a"}, "missing_required_parameter", "text_2"),
    ({"text_1": ["a", "b"], "text_2": "a"}, "invalid_value", "text_1"),
    ({"text_1": "a", "text_2": []}, "empty_array", "text_2"),
    ({"text_1": "", "text_2": "a"}, "empty_string", "text_1"),
    ({"text_1": "a", "text_2": [1, 2]}, "invalid_type", "text_2"),
    ({"text_1": "a", "text_2": "truth " * 300}, "context_length_exceeded", "text_2"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_SCORES)
async def test_a_bad_score_request_gets_one_clear_error(fields: dict[str, Any], code: str, param: str) -> None:
    engine = embedding_engine()
    check_error(await post(engine, URL, **fields), 400, code, param)
    assert not engine.submitted


async def rerank(**fields: object) -> list[dict[str, Any]]:
    response = await post(embedding_engine(), RERANK_URL, query=TEXT, **fields)
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    return results


async def test_documents_come_by_descending_similarity_and_equal_ones_in_their_order() -> None:
    results = await rerank(documents=DOCUMENTS)
    query = vector_of(tokenizer().encode(TEXT))
    cosines = [
        sum(a * b for a, b in zip(query, vector_of(tokenizer().encode(text)), strict=True)) for text in DOCUMENTS
    ]
    assert [entry["index"] for entry in results[:2]] == [1, 3]
    scores = [entry["relevance_score"] for entry in results]
    assert scores == sorted(scores, reverse=True)
    assert scores == pytest.approx([cosines[entry["index"]] for entry in results])
    assert all(entry["document"] == {"text": DOCUMENTS[entry["index"]]} for entry in results)


async def test_top_n_keeps_the_best_and_documents_may_be_objects() -> None:
    results = await rerank(documents=[{"text": text} for text in DOCUMENTS], top_n=1, return_documents=False)
    assert results == [{"index": 1, "relevance_score": pytest.approx(1)}]
    assert len(await rerank(documents=DOCUMENTS, top_n=100)) == 4


BAD_RERANKS: list[tuple[dict[str, Any], str, str]] = [
    ({"documents": ["a"]}, "missing_required_parameter", "query"),
    ({"query": "a"}, "missing_required_parameter", "documents"),
    ({"query": "", "documents": ["a"]}, "empty_string", "query"),
    ({"query": "a", "documents": []}, "empty_array", "documents"),
    ({"query": "a", "documents": ["b", ""]}, "empty_string", "documents"),
    ({"query": "a", "documents": [5]}, "invalid_type", "documents"),
    ({"query": "a", "documents": [{"title": "b"}]}, "invalid_type", "documents"),
    ({"query": "a", "documents": ["b"], "top_n": 0}, "integer_below_min_value", "top_n"),
    ({"query": "a", "documents": ["b"], "max_tokens_per_doc": 5}, "unsupported_parameter", "max_tokens_per_doc"),
    ({"query": "a", "documents": ["truth " * 300]}, "context_length_exceeded", "documents"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_RERANKS)
async def test_a_bad_rerank_request_gets_one_clear_error(fields: dict[str, Any], code: str, param: str) -> None:
    engine = embedding_engine()
    check_error(await post(engine, RERANK_URL, **fields), 400, code, param)
    assert not engine.submitted
