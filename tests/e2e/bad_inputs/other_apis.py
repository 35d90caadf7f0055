"""Fields of the endpoints other than completions and chat."""

from tests.e2e.bad_inputs.rows import (
    ABOVE,
    BELOW,
    CONTEXT,
    CONTEXT_CODE,
    COUNT,
    DETOKENIZE,
    EMBEDDINGS,
    HI,
    MESSAGES,
    MISSING,
    NO_BOOL,
    NO_ID,
    NO_INT,
    NO_ITEM,
    NO_TEXT,
    RERANK,
    RESPONSES,
    SCORE,
    TOKENIZE,
    TOO_MANY,
    TYPE,
    UNKNOWN,
    UNSUPPORTED,
    VALUE,
    VOCAB,
    Row,
    conversation,
    each,
)
from tests.e2e.bad_inputs.tools import tool

M0 = "messages[0]"

OTHER_ROWS: dict[str, Row] = {
    "tokenize": Row(
        (TOKENIZE,),
        [
            *each("prompt", [5, True, [], {}, ["Zebra"], [1]], TYPE),
            *each("prompt", [None, ...], MISSING),
            ({"messages": [HI]}, MISSING, "prompt"),  # beside a prompt
            *[
                ({"prompt": ..., **change}, code, param)
                for change, code, param in (
                    (conversation(), NO_ITEM, "messages"),
                    (conversation({"role": "Zebra", "content": "x"}), VALUE, f"{M0}.role"),
                    ({**conversation(HI), "tools": [tool(), tool()]}, VALUE, "tools[1].function.name"),
                    ({**conversation(HI), "continue_final_message": True}, VALUE, "continue_final_message"),
                    ({**conversation(HI), "chat_template": "Zebra"}, UNSUPPORTED, "chat_template"),
                )
            ],
            *each("add_special_tokens", NO_BOOL, TYPE),
        ],
    ),
    "embeddings": Row(
        (EMBEDDINGS,),
        [
            *each("input", [None, ...], MISSING),
            *each("input", [5, True, {}, ["Zebra", 5], [5, "Zebra"], [[5], "Zebra"], [[[5]]], [1.0], [[True]]], TYPE),
            *each("input", ["", ["Zebra", ""]], NO_TEXT),
            *each("input", [[], [[]], [[5], []]], NO_ITEM),
            *each("input", [["Zebra"] * 2049, [[5]] * 2049], TOO_MANY),
            *each("input", [[VOCAB], [[5], [2**63 - 1]]], ABOVE),
            *each("input", [[-1], [[5], [-(2**63)]]], BELOW),
            *each("input", [[5] * (CONTEXT + 1), ["Zebra", "Zebra " * CONTEXT]], CONTEXT_CODE),
            *each("encoding_format", ["Zebra", "bytes", "", "FLOAT", 5, []], VALUE),
            *each("dimensions", [0, -1], BELOW),
            *each("dimensions", [10**6, 2**63 - 1], ABOVE),
            *each("dimensions", NO_INT, TYPE),
            *each("truncate_prompt_tokens", [0, -2, -(2**63)], BELOW),
            *each("normalize", [False, 1, "Zebra"], UNSUPPORTED),
            *each("messages", [[HI], []], UNSUPPORTED),
        ],
    ),
    "score": Row(
        (SCORE,),
        [
            *[case for field in ("text_1", "text_2") for case in each(field, [None, ...], MISSING)],
            *[case for field in ("text_1", "text_2") for case in each(field, [5, True, {}, [5], [[5]]], TYPE)],
            *[case for field in ("text_1", "text_2") for case in each(field, ["", ["Zebra", ""]], NO_TEXT)],
            *[case for field in ("text_1", "text_2") for case in each(field, [[]], NO_ITEM)],
            *each("text_2", [["Zebra"] * 2049], TOO_MANY),
            *each("text_1", [["Zebra", "Zebra"], ["Zebra"] * 3], VALUE),
            *each("text_1", ["Zebra " * CONTEXT], CONTEXT_CODE),
        ],
    ),
    "rerank": Row(
        (RERANK,),
        [
            *[case for field in ("query", "documents") for case in each(field, [None, ...], MISSING)],
            *each("query", [5, True, {}, ["Zebra"]], TYPE),
            *each("documents", [5, True, {}, "Zebra", [5], [["Zebra"]], [{}], [{"text": 5}]], TYPE),
            *each("query", [""], NO_TEXT),
            *each("documents", [["Zebra", ""]], NO_TEXT),
            *each("documents", [[]], NO_ITEM),
            *each("documents", [["Zebra"] * 2049], TOO_MANY),
            *each("documents", [["Zebra " * CONTEXT]], CONTEXT_CODE),
            *each("top_n", [0, -1], BELOW),
            *each("return_documents", NO_BOOL, TYPE),
            *each("max_tokens_per_doc", [5, "Zebra"], UNSUPPORTED),
        ],
    ),
    "detokenize": Row(
        (DETOKENIZE,),
        [
            *each("tokens", [None, ...], MISSING),
            *each("tokens", [5, "Zebra", True, {}, *[[value] for value in NO_ID]], TYPE),
            *each("tokens", [[VOCAB], [5, 2**63 - 1]], ABOVE),
            *each("tokens", [[-1], [-(2**63)]], BELOW),
        ],
    ),
    "responses: items": Row(
        (RESPONSES,),
        [
            *each("input", [..., None], MISSING),
            *each("input", [5, {}, True], TYPE),
            *each("input", [[]], NO_ITEM),
            *each("input", [[HI] * 10_001], TOO_MANY),
            *[({"input": [item]}, TYPE, "input[0]") for item in (None, "Zebra", 5)],
            ({"input": [{}]}, MISSING, "input[0].type"),
            *[
                ({"input": [{"type": kind}]}, "unsupported_value", "input[0].type")
                for kind in ("Zebra", 5, "item_reference", "web_search_call")
            ],
            ({"input": [{"role": "user"}]}, MISSING, "input[0].content"),
            ({"input": [{"role": "Zebra", "content": "x"}]}, VALUE, "input[0].role"),
            (
                {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///Zebra"}]}]},
                VALUE,
                "input[0].content[0].type",
            ),
            ({"input": [{"type": "function_call_output", "call_id": "a", "output": "x"}]}, VALUE, "input"),
            ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}]}, VALUE, "input"),
            ({"text": {"format": {"type": "Zebra"}}}, VALUE, "text.format.type"),
            ({"text": {"format": {"type": "json_schema"}}}, MISSING, "text.format"),
            (
                {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "Zebra"}}}},
                VALUE,
                "text.format",
            ),
            ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, VALUE, "tool_choice"),
            ({"tools": [{}]}, MISSING, "tools[0].type"),
            ({"tools": [{"type": "namespace", "name": "n"}]}, MISSING, "tools[0].tools"),
            ({"text": {"format": {"type": "text", "regex": "Zebra"}}}, UNKNOWN, "text.format.regex"),
            *each("truncation", ["Zebra"], VALUE),
            *each("top_logprobs", [5], VALUE),
            *each("response_format", [{"type": "json_object"}], UNSUPPORTED),
            ({"tools": [{"type": "function", "name": "f g"}]}, VALUE, "tools[0].name"),
            ({"tool_choice": "Zebra"}, VALUE, "tool_choice"),
            ({"previous_response_id": "Zebra"}, UNSUPPORTED, "previous_response_id"),
            ({"background": True}, UNSUPPORTED, "background"),
        ],
    ),
    "messages: blocks": Row(
        (MESSAGES, COUNT),
        [
            *[(conversation({"role": "user", "content": [block]}), TYPE, None) for block in (None, 5, "Zebra")],
            (
                conversation({"role": "user", "content": [{"type": "image", "source": {"url": "file:///Zebra"}}]}),
                VALUE,
                None,
            ),
            (conversation({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "Zebra"}]}), VALUE, None),
            (
                conversation(
                    HI,
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": "Zebra"}]},
                ),
                TYPE,
                None,
            ),
            (
                conversation(
                    HI, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}
                ),
                VALUE,
                None,
            ),
            *each("system", [5, [], [5], [{"type": "image"}]], TYPE),
            *each("tools", [5, [{}], [{"name": "f"}], [{"name": "f", "input_schema": 5}]], TYPE),
            *each("tool_choice", [5, "auto", {}, {"type": "Zebra"}, {"type": "any"}], TYPE),
            *each("mcp_servers", [[{}]], UNSUPPORTED),
            *each("container", ["Zebra"], UNSUPPORTED),
        ],
    ),
    "messages: sampling": Row(
        (MESSAGES,),
        [
            *each("max_tokens", [..., None], MISSING),
            *each("stop_sequences", [5, "Zebra", [""], ["a"] * 33, [5], ["Zebra" * 52]], TYPE),
            *each("output_format", [5, {"type": "Zebra"}], TYPE),
            *each("output_config", [5, {"format": 5}, {"format": {"type": "Zebra"}}], TYPE),
            *each("metadata", [5, {"user_id": 5}, {"user_id": "Zebra" * 120}], TYPE),
        ],
    ),
}
