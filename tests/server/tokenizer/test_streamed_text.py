"""Random texts through detokenizer, stop strings and choices: deltas add up to the whole text, cut at the same place.

The oracle handles the text as one string, with str.find of each stop string.
"""

import random
from pathlib import Path

import pytest

from engine.types import RequestOutput
from server.generation.choice import Choice, StopConditions
from server.tokenizer.detokenizer import Detokenizer
from server.tokenizer.stop_strings import StopStringMatcher
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.support.checkpoints.mistral_tokenizers import v1_tokenizer, v3_tokenizer
from tests.support.paths import DEMO

TEXTS = 3_000  # at scale 1, over all tokenizers; 34 times as many at full scale: 102,000
ALPHABETS = (
    "abc ",
    "etaoin shrdlu.,\n\t",
    "äöüßéçñ αβγδ жзий",
    "世界你好日本語한국어",
    "😀👩‍🚀🏳️‍🌈👍🏽\u0301\u200d\ufe0f",
    "[INST]</s><s>\0\x7f\ufffd",
)


@pytest.fixture(scope="module", params=["v1", "v3", "demo"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "demo":
        return load_tokenizer(DEMO)
    folder = Path(tmp_path_factory.mktemp(request.param))
    return v1_tokenizer(folder) if request.param == "v1" else v3_tokenizer(folder)


def random_text(rng: random.Random) -> str:
    alphabets = rng.choices(ALPHABETS, k=rng.randint(1, 3))
    return "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randint(1, 40)))


def random_stops(rng: random.Random, text: str) -> list[str]:
    """Draw pieces of the text, some with a character appended that the text lacks."""
    stops = []
    for _ in range(rng.randint(0, 4)):
        start = rng.randrange(len(text))
        piece = text[start : start + rng.randint(1, 6)]
        stops.append(piece if rng.random() < 0.7 else piece + "\u2603")
    return stops


def naive_cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Cut at the stop string that ends first; of several that end there, at the longest."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, _, stop = min(ends)
    return text[: end if include else end - len(stop)], stop


def random_outputs(rng: random.Random, ids: list[int]) -> list[RequestOutput]:
    """Split the ids into random pieces; the last piece ends the request."""
    outputs = []
    start = 0
    while start < len(ids):
        end = start + rng.choice((1, 1, 1, 2, 5, 50))
        reason = "length" if end >= len(ids) else None
        outputs.append(RequestOutput(1, ids[start:end], finish_reason=reason))
        start = end
    return outputs


def streamed(tokenizer: Tokenizer, outputs: list[RequestOutput], stops: list[str], include: bool) -> list[str]:
    choice = Choice(0, Detokenizer(tokenizer), StopStringMatcher(stops, include), StopConditions(include_stop=include))
    texts: list[str] = []
    reason: str | int | None = None
    for output in outputs:
        delta = choice.push(output)
        if delta is not None:
            texts.append(delta.text)
            reason = delta.stop_reason
        if choice.finish_reason:
            break
    return [*texts, "" if reason is None else str(reason)]


def test_a_stream_is_the_whole_text_cut_where_the_whole_is_cut(tokenizer: Tokenizer, scale: int) -> None:
    rng = random.Random(tokenizer.vocab_size)
    num_texts = TEXTS // 3 * (scale if scale < 10 else 34 * scale // 10)
    for _ in range(num_texts):
        text = random_text(rng)
        ids = tokenizer.encode(text, add_special_tokens=False)
        whole = tokenizer.decode(ids)
        stops, include = random_stops(rng, text), rng.random() < 0.5
        expected, stop = naive_cut(whole, stops, include)
        *deltas, reason = streamed(tokenizer, random_outputs(rng, ids), stops, include)
        assert "".join(deltas) == expected, (text, stops)
        assert reason == (stop or "")
        assert "".join(deltas).count("\ufffd") <= text.count("\ufffd")


def test_invalid_bytes_give_replacement_characters_only_where_the_whole_text_has_them(
    tokenizer: Tokenizer, scale: int
) -> None:
    rng = random.Random(1)
    for _ in range(TEXTS // 10 * scale):
        ids = [rng.randrange(3, rng.choice((259, tokenizer.vocab_size))) for _ in range(rng.randint(1, 20))]
        *deltas, _ = streamed(tokenizer, random_outputs(rng, ids), [], False)
        assert "".join(deltas) == tokenizer.decode(ids)
