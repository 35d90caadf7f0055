"""The vocabulary of Mistral Nemo, as a tokenizer.json and as a GGUF file, gives the ids of mistral-common's own."""

import random
from pathlib import Path

import pytest
from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer as JsonTokenizer

from server.chat.template import ChatTemplate
from server.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tests.server.chat.test_mistral_format import mistral_ids
from tests.server.chat.test_template import conversation
from tests.support.checkpoints.byte_level import tekken, vocabulary_fields
from tests.support.checkpoints.gguf import write_fields
from tests.support.paths import ROOT

NUM_IDS = 131_072


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tekkenizer]:
    return tekken(tmp_path_factory.mktemp("tekken"))


@pytest.fixture(scope="module", params=["tokenizer.json", "GGUF"])
def ours(request: pytest.FixtureRequest, files: tuple[Path, Tekkenizer]) -> Tokenizer:
    path, _ = files
    if request.param == "tokenizer.json":
        return load_tokenizer(path)
    fields = vocabulary_fields(JsonTokenizer.from_file(str(path / "tokenizer.json")), "tekken")
    fields |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    return load_tokenizer(write_fields(path / "tekken.gguf", fields))


def _texts(tokenizer: Tokenizer, count: int) -> list[str]:
    """Return texts of the repository, of random characters and of random tokens."""
    rng = random.Random()
    drawn = [
        "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x20, 0xD800)))) for _ in range(60))
        for _ in range(count)
    ]
    joined = ["".join(tokenizer.token_text(rng.randrange(1000, NUM_IDS)) for _ in range(30)) for _ in range(count)]
    return [(ROOT / "README.md").read_text(), *drawn, *joined]


def test_ids_and_bytes_are_those_of_the_original(ours: Tokenizer, files: tuple[Path, Tekkenizer], scale: int) -> None:
    _, original = files
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (NUM_IDS, original.bos_id, (original.eos_id,))
    for text in _texts(ours, 200 * scale):
        assert ours.encode(text, add_special_tokens=False) == original.encode(text, bos=False, eos=False)
    for token_id in range(1000, NUM_IDS, 7):
        assert ours.token_bytes(token_id) == original.id_to_byte_piece(token_id, SpecialTokenPolicy.KEEP)
    specials = [original.id_to_piece(i) for i in range(1000)]
    assert ours.encode_with_specials("".join(specials)) == list(range(1000))
    assert ours.special_spellings == frozenset(specials)


def test_without_a_template_a_conversation_has_the_ids_of_the_original(ours: Tokenizer) -> None:
    oracle = MistralTokenizer.v3(is_tekken=True)
    turns = [("system", "Be brief."), ("user", " Hello [INST]"), ("assistant", "Grüße "), ("user", "🙂")]
    assert ChatTemplate(None, ours).render(conversation(*turns)) == mistral_ids(oracle, turns)
