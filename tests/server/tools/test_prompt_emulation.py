"""server/tools/prompt_emulation.py: tools, calls and results as plain text for a model of version 1."""

from server.tokenizer.tokenizer import Tokenizer
from tests.server.tools.test_tool_prompts import our_ids, with_ids


def test_tools_calls_and_results_are_plain_text(v1: Tokenizer) -> None:
    ids, repairs = our_ids(v1, with_ids("abcdefghi"))
    text = v1.decode(ids)
    assert [i for i in ids if v1.is_special(i)] == [1, 2]
    assert '{"type": "function", "function": {"name": "f"' in text
    assert '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]' in text
    assert '[INST] [TOOL_RESULTS] {"content": 1, "call_id": "abcdefghi"} [/INST]' in text
    assert "mapped-tool-ids" not in repairs


def test_tools_beside_a_system_text_and_several_results_need_no_repair(v1: Tokenizer) -> None:
    body = with_ids("abcdefghi")
    body["messages"].insert(0, {"role": "system", "content": "Be brief."})
    body["messages"][2]["tool_calls"].append({**body["messages"][2]["tool_calls"][0], "id": "second"})
    body["messages"].append({"role": "tool", "tool_call_id": "second", "content": "two"})
    ids, repairs = our_ids(v1, body)
    assert repairs == []
    text = v1.decode(ids)
    assert text.startswith("[INST] These functions can be called") and "\n\nBe brief.\n\na [/INST]" in text
    assert '"call_id": "abcdefghi"}\n[TOOL_RESULTS] {"content": "two", "call_id": "second"} [/INST]' in text
