"""POST /tokenize, POST /detokenize and GET /tokenizer_info."""

import pytest

from tests.support.fake_engine import FakeEngine
from tests.support.serving import check_error, client_of, saying, state_around, tokenizer

pytestmark = pytest.mark.anyio


async def test_tokenize_and_detokenize_are_inverse() -> None:
    state = state_around(FakeEngine(saying("a")))
    assert state.texts is not None
    async with client_of(state) as client:
        body = (await client.post("/tokenize", json={"prompt": "Grüße!"})).json()
        assert body["tokens"] == tokenizer().encode("Grüße!")
        assert (body["count"], body["max_model_len"]) == (len(body["tokens"]), 256)
        plain = (await client.post("/tokenize", json={"prompt": "Grüße!", "add_special_tokens": False})).json()
        assert plain["tokens"] == body["tokens"][1:]
        assert (await client.post("/detokenize", json={"tokens": plain["tokens"]})).json() == {"prompt": "Grüße!"}
        chat = (await client.post("/tokenize", json={"messages": [{"role": "user", "content": "Hello"}]})).json()
        assert chat["tokens"] == [1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793]
        response = await client.post("/detokenize", json={"tokens": [32000]})
        check_error(response, 400, "integer_above_max_value", "tokens")
        info = (await client.get("/tokenizer_info")).json()
        assert (info["bos_token"], info["eos_token"], info["chat_template"]) == (
            "<s>",
            "</s>",
            state.texts.chat_template.source,
        )
