"""Bodies put together from whatever pieces the network makes of them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bench.http_client import BodyDecoder, Endpoint, HttpError


def split(sent: bytes, rng: random.Random) -> list[bytes]:
    cuts = sorted(rng.sample(range(1, len(sent)), min(len(sent) - 1, rng.randint(0, 12))))
    return [sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True)]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.randoms(use_true_random=False))
def test_a_body_in_chunks_is_the_same_however_it_is_split(parts: list[bytes], rng: random.Random) -> None:
    sent = b"".join(b"%X;x=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    decoder = BodyDecoder({"transfer-encoding": "chunked"})
    assert b"".join(map(decoder.feed, split(sent, rng))) == b"".join(parts)
    assert decoder.is_complete


@pytest.mark.parametrize("headers", [{"transfer-encoding": "chunked"}, {"content-length": "9"}])
def test_a_body_that_ends_early_is_an_error(headers: dict[str, str]) -> None:
    decoder = BodyDecoder(headers)
    decoder.feed(b"5\r\nabc")
    with pytest.raises(HttpError, match="within a reply"):
        decoder.feed(b"")


def test_a_body_without_a_length_ends_with_its_connection() -> None:
    decoder = BodyDecoder({})
    assert decoder.feed(b"abc") == b"abc" and not decoder.is_complete
    decoder.feed(b"")
    assert decoder.is_complete


def test_a_chunk_without_a_length_is_an_error() -> None:
    with pytest.raises(HttpError):
        BodyDecoder({"transfer-encoding": "chunked"}).feed(b"zz\r\n")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("https://a.example/proxy/v1", "https://a.example:443/proxy"),
        ("http://[::1]:5", "http://[::1]:5"),
    ],
)
def test_a_url_may_have_its_v1_or_not(url: str, shown: str) -> None:
    assert Endpoint.parse(url).url == shown


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:b", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Endpoint.parse(url)
