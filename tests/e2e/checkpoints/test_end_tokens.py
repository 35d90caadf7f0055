"""A token that generation_config.json adds to the ends of answers ends them under a grammar too."""

import json
import shutil
from pathlib import Path

from tests.support.paths import DEMO
from tests.support.servers.running import start_server

ADDED_END = 3071


def test_an_added_end_token_ends_answers_under_a_grammar(tmp_path: Path) -> None:
    copy = shutil.copytree(DEMO, tmp_path / "copy")
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, ADDED_END]}))
    with start_server("--threads", "1", model=str(copy)) as server:
        tokens = server.post("/tokenize", {"prompt": "a", "add_special_tokens": False}).json()["tokens"]
        preferred = {"regex": "[a-z]{2}", "logit_bias": {ADDED_END: 100}, "max_tokens": 9}
        only = {"regex": "( a)+", "allowed_token_ids": [*tokens, ADDED_END], "max_tokens": 99}
        for body in (preferred, only):
            reply = server.post("/v1/completions", {"model": "copy", "prompt": "It was", "seed": 1, **body})
            assert reply.status_code == 200, reply.text
            [choice] = reply.json()["choices"]
            assert choice["finish_reason"] == "stop" and choice["text"].strip("abcdefghijklmnopqrstuvwxyz ") == ""
