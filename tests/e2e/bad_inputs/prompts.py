"""Prompts and messages."""

from tests.e2e.bad_inputs.rows import (
    ABOVE,
    BELOW,
    CHAT,
    COMPLETIONS,
    CONTEXT,
    CONTEXT_CODE,
    COUNT,
    EVERYWHERE,
    HI,
    MESSAGES,
    MISSING,
    NO_INT,
    NO_ITEM,
    NO_TEXT,
    OPENAI,
    TOO_MANY,
    TYPE,
    UNSUPPORTED,
    VALUE,
    VOCAB,
    Row,
    conversation,
    each,
    integers,
    parts,
)

M0 = "messages[0]"

PROMPT_ROWS: dict[str, Row] = {
    "a number beyond a double, in a field of another type": Row(
        EVERYWHERE, [({"model": 10**30}, ABOVE, "model"), ({"model": -(10**30)}, BELOW, "model")]
    ),
    "an unknown field beyond 64 bits": Row(EVERYWHERE, [({"temprature": 2**63}, ABOVE, "temprature")]),
    "prompts": Row(
        (COMPLETIONS,),
        [*each("prompt", [["a"] * 129, [[1]] * 129], TOO_MANY), *each("prompt", [[5] * 300_000], CONTEXT_CODE)],
    ),
    "empty prompts": Row(
        (COMPLETIONS,),
        [
            *each("prompt", ["", [""], ["a", ""]], NO_TEXT),
            *each("prompt", [[], [[]], [[1], []]], NO_ITEM),
            *each("prompt", [None, ...], MISSING),
        ],
    ),
    "prompts of mixed and other kinds": Row(
        (COMPLETIONS,),
        [
            *each("prompt", [5, True, 1.5, {}, ["a", 1], [1, "a"], [[1], "a"], ["a", [1]], [[[1]]], [None]], TYPE),
            *each("prompt", [[True], [1.0], [[1.0]], [["Zebra"]], [{}], [[None]]], TYPE),
            *each("prompt", [[VOCAB], [2**31], [2**63 - 1], [[5], [VOCAB]]], ABOVE),
            *each("prompt", [[-1], [[-1]], [-(2**63)]], BELOW),
        ],
    ),
    "prompts beyond the context": Row(
        (COMPLETIONS,),
        [
            *each("prompt", [[5] * CONTEXT, ["a", "word " * 3000]], CONTEXT_CODE),
            ({"prompt": [5] * (CONTEXT - 1)}, CONTEXT_CODE, "max_tokens"),  # a shorter answer would fit
        ],
    ),
    "prompt and completion beyond the context": Row(
        OPENAI,
        [({"max_tokens": limit}, CONTEXT_CODE, None) for limit in (CONTEXT, 10**6, 2**31, 2**63 - 1)],
    ),
    "messages that are not a list": Row(
        (CHAT, MESSAGES, COUNT),
        [
            *each("messages", [None, ...], MISSING),
            *each("messages", [{}, "Zebra", 5, True], TYPE),
            *each("messages", [[]], NO_ITEM),
            *each("messages", [[HI] * 10_001], TOO_MANY),
        ],
    ),
    "invalid messages": Row(
        (CHAT, MESSAGES, COUNT),
        [
            *[(conversation(message), TYPE, M0) for message in (None, "Zebra", 5, [], True)],
            (conversation({}), MISSING, f"{M0}.role"),
            (conversation({"content": "Zebra"}), MISSING, f"{M0}.role"),
            (conversation({"role": "user"}), MISSING, f"{M0}.content"),
            (conversation({"role": "user", "content": None}), MISSING, f"{M0}.content"),
            *[(conversation({"role": "user", "content": value}), TYPE, f"{M0}.content") for value in (5, {}, True)],
            (parts(), NO_ITEM, f"{M0}.content"),
            (conversation(HI, {"role": "user"}), MISSING, "messages[1].content"),
        ],
    ),
    "invalid parts": Row(
        (CHAT,),
        [
            *[(parts(part), TYPE, f"{M0}.content[0]") for part in (None, "Zebra", 5, [])],
            (parts({}), MISSING, f"{M0}.content[0].type"),
            (parts({"type": 5}), TYPE, f"{M0}.content[0].type"),
            (parts({"type": "text"}), MISSING, f"{M0}.content[0].text"),
            (parts({"type": "text", "text": None}), MISSING, f"{M0}.content[0].text"),
            (parts({"type": "text", "text": ["Zebra"]}), TYPE, f"{M0}.content[0].text"),
        ],
    ),
    "roles": Row(
        (CHAT, MESSAGES, COUNT),
        [
            (conversation({"role": role, "content": "x"}), VALUE, f"{M0}.role")
            for role in (
                "root",
                "",
                "Assistant",
                "user\0",
                "Zebra",
                " user",
                "\u0455ystem",
                "function",
                5,
                ["user"],
                {},
            )
        ],
    ),
    "images and audio": Row(
        (CHAT,),
        [
            (parts({"type": "text", "text": "x"}, part), "unsupported_value", f"{M0}.content[1].type")
            for part in (
                {"type": "image_url", "image_url": {"url": "http://169.254.169.254/Zebra"}},
                {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
                {"type": "input_audio", "input_audio": {"data": "Zebra"}},
                {"type": "Zebra", "text": "x"},
                {"type": "", "text": "x"},
                {"type": "TEXT", "text": "x"},
            )
        ],
    ),
    "unsupported fields": Row(
        (CHAT,),
        [
            *each("chat_template", ["{{ 'Zebra' }}", ""], UNSUPPORTED),
            *each("chat_template_kwargs", [{"Zebra": 1}, {"tools": []}, {"": 1}], UNSUPPORTED),
            *each("chat_template_kwargs", [5, "Zebra", []], TYPE),
            *each("functions", [[{}]], UNSUPPORTED),
            *each("modalities", [["text", "audio"]], UNSUPPORTED),
            (conversation({**HI, "prefix": True}), VALUE, f"{M0}.prefix"),
            (conversation({**HI, "function_call": {}}), UNSUPPORTED, f"{M0}.function_call"),
        ],
    ),
    "fields that both endpoints refuse": Row(
        OPENAI,
        [
            *each("prompt_embeds", ["Zebra", [1.0]], UNSUPPORTED),
            *each("multi_modal_data", [{"image": "Zebra"}], UNSUPPORTED),
            *each("guided_json", [5], TYPE),
            ({"guided_json": {}, "guided_regex": "a"}, VALUE, "guided_regex"),
            *each("grammar", [{"type": "regex", "value": "Zebra"}, 5], TYPE),
            *each("json_schema", [5, "Zebra", []], TYPE),
            *each("structural_tag", ["Zebra"], UNSUPPORTED),
            *integers("prompt_logprobs", 0, 20),
            *each("use_beam_search", [True, 0], UNSUPPORTED),
        ],
    ),
    "nothing to generate": Row(
        (COMPLETIONS,),
        [
            *[
                ({"max_tokens": 0, **more}, BELOW, "max_tokens")
                for more in ({}, {"echo": False}, {"n": 8}, {"logprobs": 1})
            ],
            ({"max_tokens": 0, "echo": True, "min_tokens": 1}, VALUE, "min_tokens"),
        ],
    ),
    "best_of beyond n": Row(
        (COMPLETIONS,),
        [
            *each("suffix", ["Zebra"], UNSUPPORTED),
            *each("best_of", [20, 2], UNSUPPORTED),
            ({"n": 3, "best_of": 2}, UNSUPPORTED, "best_of"),
            *each("best_of", NO_INT, TYPE),
            *each("best_of", [0, -1], BELOW),
        ],
    ),
}
