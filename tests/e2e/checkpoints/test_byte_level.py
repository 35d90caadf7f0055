"""A merge of Llama 3's kind, with a byte-level vocabulary, several end tokens and scaled rotary angles, is served as a
directory, as a GGUF file and as a pack. So is Nemo's kind in Mistral's own layout, with a tekken.json."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from tests.model.checkpoint.test_mistral_layout import save_as_mistral
from tests.server.chat.test_mistral_format import mistral_ids
from tests.server.cli.plan.test_memory import plan
from tests.support.checkpoints.byte_level import BOS, TEMPLATE, TURN_END, cut_tekken, save, trained, vocabulary_fields
from tests.support.checkpoints.gguf import GgufShape, write_gguf
from tests.support.checkpoints.mixtral import Shape, edit_config, save_random_checkpoint
from tests.support.checkpoints.packs import make_pack
from tests.support.servers.running import forked_server

TOKENIZER = trained()
NUM_IDS = TOKENIZER.get_vocab_size(with_added_tokens=True)
LLAMA_3_ANGLES = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
MESSAGES = [{"role": "user", "content": f"naïve {TURN_END}\U0001f642"}]
RENDERED = (
    f"{BOS}<|start_header_id|>user<|end_header_id|>\n\n{MESSAGES[0]['content']}{TURN_END}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
SCHEMA = {
    "type": "object",
    "properties": {"größe": {"enum": ["Äpfel", "\U0001f642"]}, "n": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["größe", "n"],
    "additionalProperties": False,
}


def _directory(path: Path) -> Path:
    save_random_checkpoint(Shape(num_experts=4, vocab_size=NUM_IDS, tied=True), path)
    edit_config(path, rope_parameters=..., rope_theta=5e5, rope_scaling=LLAMA_3_ANGLES)
    return save(TOKENIZER, path)


def _gguf(path: Path) -> Path:
    fields = vocabulary_fields(TOKENIZER, "llama-bpe") | {"tokenizer.chat_template": TEMPLATE}
    fields |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
    divisors = (1.0,) * 16 + (2.5,) * 8 + (8.0,) * 8
    path.mkdir()
    write_gguf(path / "a.gguf", GgufShape(vocab_size=NUM_IDS, tied=True, fields=fields, rope_divisors=divisors))
    return path / "a.gguf"


def _pack(path: Path) -> Path:
    return make_pack(_gguf(path), path / "pack")


@pytest.mark.parametrize("make", [_directory, _gguf, _pack])
def test_it_is_planned_and_served(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    assert plan(model, "--memory", "1GiB").exit_code == 0
    with forked_server("--threads", "1", "--served-model-name", "m", model=str(model)) as server:
        client = httpx.Client(base_url=server.url, timeout=60)

        def post(path: str, **fields: Any) -> Any:
            response = client.post(path, json={"model": "m", **fields})
            assert response.status_code == 200, response.text
            return response.json()

        def chat(**fields: Any) -> Any:
            return post("/v1/chat/completions", messages=MESSAGES, seed=3, **fields)["choices"][0]

        prompt = post("/tokenize", messages=MESSAGES)["tokens"]
        text = post("/detokenize", tokens=prompt)["prompt"]
        schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
        formatted = chat(response_format=schema, max_tokens=400)
        free = chat(max_tokens=100, logprobs=True)
        turn_end, letter = map(TOKENIZER.token_to_id, (TURN_END, "b"))
        ended = chat(max_tokens=5, allowed_token_ids=[turn_end])
        only_b = {"prompt": "a", "max_tokens": 3, "temperature": 0, "logit_bias": {str(letter): 100}}
        letters = [post("/v1/completions", **only_b, **stop)["choices"][0]["text"] for stop in ({}, {"stop": "bb"})]
    assert text == RENDERED
    assert prompt.count(turn_end) == 1, "what the user spells is text"
    assert formatted["finish_reason"] == "stop"
    jsonschema.validate(json.loads(formatted["message"]["content"]), SCHEMA)
    shown = b"".join(bytes(entry["bytes"]) for entry in free["logprobs"]["content"])
    assert shown.decode(errors="replace") == free["message"]["content"] != ""
    assert (ended["finish_reason"], ended["message"]["content"]) == ("stop", "")
    assert letters == ["bbb", ""]


def _own_layout(path: Path) -> Path:
    path.mkdir()
    file = cut_tekken(path)
    save_as_mistral(path, Shape(num_experts=4, vocab_size=Tekkenizer.from_file(file).n_words))
    shutil.rmtree(path / "source")
    return path


def _pack_of_own_layout(path: Path) -> Path:
    return make_pack(_own_layout(path), path.parent / "pack")


@pytest.mark.parametrize("make", [_own_layout, _pack_of_own_layout])
def test_mistrals_own_layout_is_planned_and_served(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = make(tmp_path / "model")
    oracle = MistralTokenizer.from_file(cut_tekken(tmp_path))
    assert plan(model, "--memory", "1GiB").exit_code == 0
    messages = [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "naïve </s>\U0001f642"}]
    with forked_server("--threads", "1", "--served-model-name", "m", model=str(model)) as server:
        client = httpx.Client(base_url=server.url, timeout=60)
        prompt = client.post("/tokenize", json={"model": "m", "messages": messages}).json()["tokens"]
        body = {"model": "m", "messages": messages, "max_tokens": 20, "logprobs": True, "seed": 3}
        answer = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert prompt == mistral_ids(oracle, [(turn["role"], turn["content"]) for turn in messages])
    shown = b"".join(bytes(entry["bytes"]) for entry in answer["logprobs"]["content"])
    assert shown.decode(errors="replace") == answer["message"]["content"] != ""
