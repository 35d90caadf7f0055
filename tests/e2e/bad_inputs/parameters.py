"""Parameters and models."""

from tests.e2e.bad_inputs.rows import (
    ABOVE,
    BELOW,
    CHAT,
    COMPLETIONS,
    EVERYWHERE,
    GENERATING,
    MESSAGES,
    NO_BOOL,
    NO_ID,
    NO_INT,
    NO_ITEM,
    NO_NUMBER,
    NO_TEXT,
    NO_TEXT_TYPE,
    NUMBER_ABOVE,
    NUMBER_BELOW,
    OPENAI,
    RESPONSES,
    TOO_LONG,
    TOO_MANY,
    TYPE,
    VALUE,
    VOCAB,
    Row,
    bounds_on_tokens,
    each,
    integers,
    numbers,
)
from tests.support.servers.running import MODEL

PARAMETER_ROWS: dict[str, Row] = {
    "n": Row(OPENAI, integers("n", 1, 128)),
    "temperature": Row(GENERATING, numbers("temperature", [-0.1, -5e-324], [2.01, 1e300, 10**18])),
    "top_p": Row(GENERATING, numbers("top_p", [0, -0.0, -1], [1.0001, 1e300])),
    "top_k": Row(GENERATING, [*integers("top_k", -1, None)]),
    "min_p": Row(OPENAI, numbers("min_p", [-5e-324, -1], [1.0001, 1e308])),
    "frequency_penalty": Row(OPENAI, numbers("frequency_penalty", [-2.01], [2.01, 1e308])),
    "presence_penalty": Row(OPENAI, numbers("presence_penalty", [-2.01], [2.01, 1e308])),
    "repetition_penalty": Row(OPENAI, numbers("repetition_penalty", [0, -0.0, -1], [2.01, 1e308])),
    "repeat_penalty": Row(
        OPENAI,
        [
            *numbers("repeat_penalty", [0, -1], [2.01]),
            ({"repetition_penalty": 1.1, "repeat_penalty": 1.2}, VALUE, "repeat_penalty"),
        ],
    ),
    "max_tokens": Row(
        (CHAT, MESSAGES),
        [*each("max_tokens", NO_INT, TYPE), *each("max_tokens", [0, -2], BELOW), *each("max_tokens", [2**70], ABOVE)],
    ),
    "max_tokens of completions": Row((COMPLETIONS,), bounds_on_tokens("max_tokens", 0)),
    "max_completion_tokens": Row(
        (CHAT,),
        [
            *bounds_on_tokens("max_completion_tokens", 1),
            ({"max_completion_tokens": 3}, VALUE, "max_completion_tokens"),  # max_tokens says 2
        ],
    ),
    "max_output_tokens": Row((RESPONSES,), integers("max_output_tokens", 1, None)),
    "min_tokens": Row(OPENAI, [*integers("min_tokens", 0, None), *each("min_tokens", [3, 2**63 - 1], VALUE)]),
    "seed": Row(GENERATING, integers("seed", -(2**63), 2**63 - 1)),
    "random_seed": Row(
        OPENAI,
        [
            *integers("random_seed", -(2**63), 2**63 - 1),
            ({"seed": 1, "random_seed": 2}, VALUE, "random_seed"),
        ],
    ),
    "logprobs": Row((COMPLETIONS,), [*integers("logprobs", 0, 20), *each("logprobs", [VOCAB, VOCAB - 1], ABOVE)]),
    "top_logprobs": Row(
        (CHAT,),
        [
            *[({"logprobs": True, **change}, code, param) for change, code, param in integers("top_logprobs", 0, 20)],
            *each("top_logprobs", [1, 3], VALUE),  # without logprobs
            *each("logprobs", NO_BOOL, TYPE),
        ],
    ),
    "stop": Row(
        OPENAI,
        [
            *each("stop", ["", [""], ["a", ""]], NO_TEXT),
            *each("stop", [["a"] * 33, ["a"] * 200_000], TOO_MANY),
            *each("stop", ["Zebra" * 52, "a" * 1_000_000, ["\u0301" * 257]], TOO_LONG),
            *each("stop", [[None], [["a"]], [5], 5, {}, True, ["a", {}]], TYPE),
        ],
    ),
    "stop_token_ids": Row(
        OPENAI,
        [
            *each("stop_token_ids", [[VOCAB], [2**63 - 1]], ABOVE),
            *each("stop_token_ids", [[-1], [5, -(2**63)]], BELOW),
            *each("stop_token_ids", [list(range(257)), [5] * 10_000], TOO_MANY),
            *each("stop_token_ids", [5, "5", {}, *[[value] for value in NO_ID]], TYPE),
        ],
    ),
    "allowed_token_ids": Row(
        OPENAI,
        [
            *each("allowed_token_ids", [[]], NO_ITEM),
            *each("allowed_token_ids", [[VOCAB], [5, 2**63 - 1]], ABOVE),
            *each("allowed_token_ids", [[-1]], BELOW),
            *each("allowed_token_ids", [5, "5", {}, *[[value] for value in NO_ID]], TYPE),
            ({"allowed_token_ids": [2], "min_tokens": 1}, VALUE, "allowed_token_ids"),
        ],
    ),
    "bad_words": Row(
        OPENAI,
        [
            *each("bad_words", [[""]], NO_TEXT),
            *each("bad_words", [["a"] * 65], TOO_MANY),
            *each("bad_words", [["Zebra" * 52]], TOO_LONG),
            *each("bad_words", ["Zebra", 5, {}, [None], [5], [["a"]]], TYPE),
        ],
    ),
    "logit_bias": Row(
        OPENAI,
        [
            *[
                ({"logit_bias": {key: 1}}, VALUE, "logit_bias")
                for key in (
                    "1_0",
                    " 1",
                    "+1",
                    "1.0",
                    "\u0663",
                    "\uff11",
                    "1" * 30,
                    "-0",
                    "-1",
                    "01",
                    "1\n",
                    "0x1",
                    "1e1",
                )
            ],
            *[({"logit_bias": {key: 1}}, VALUE, "logit_bias") for key in ("", "null", "\0", "Zebra")],
            *[({"logit_bias": {key: 1}}, ABOVE, "logit_bias") for key in (str(VOCAB), "4294967296", "9999999999")],
            *[({"logit_bias": {"5": value}}, TYPE, "logit_bias") for value in (None, *NO_NUMBER)],
            *[({"logit_bias": {"5": value}}, NUMBER_ABOVE, "logit_bias") for value in (100.001, 101, 1e300)],
            *[({"logit_bias": {"5": value}}, NUMBER_BELOW, "logit_bias") for value in (-100.001, -1e300)],
            *each("logit_bias", [[], [[5, 1]], 5, "Zebra"], TYPE),
        ],
    ),
    "lists of ids, times the choices": Row(
        (COMPLETIONS,),
        [
            ({"prompt": ["a"] * 128, "n": 8, **change}, TOO_MANY, next(iter(change)))
            for change in (
                {"logit_bias": {str(token): 1 for token in range(VOCAB)}},
                {"allowed_token_ids": list(range(VOCAB))},
                {"bad_words": [f"{number:03}" * 85 for number in range(64)]},
            )
        ],
    ),
    "stream_options": Row(
        OPENAI,
        [
            *each("stream_options", [5, "Zebra", []], TYPE),
            *[
                ({"stream_options": {"include_usage": value}}, TYPE, "stream_options.include_usage")
                for value in NO_BOOL
            ],
        ],
    ),
    "user, cache_salt": Row(
        OPENAI,
        [
            *each("user", NO_TEXT_TYPE, TYPE),
            *each("user", ["Zebra" * 200_000], TOO_LONG),
            *each("cache_salt", NO_TEXT_TYPE, TYPE),
            *each("cache_salt", ["Zebra" * 103], TOO_LONG),
        ],
    ),
    "prediction": Row(
        (CHAT,),
        [
            *each("prediction", [5, "Zebra", []], TYPE),
            ({"prediction": {"type": "Zebra", "content": "a"}}, VALUE, "prediction.type"),
            ({"prediction": {"type": "content", "content": 5}}, TYPE, "prediction.content"),
            (
                {"prediction": {"type": "content", "content": [{"type": "text", "text": 5}]}},
                TYPE,
                "prediction.content[0].text",
            ),
        ],
    ),
    "metadata": Row(
        (RESPONSES,),
        [
            *each("metadata", [{f"k{number}": "v" for number in range(1000)}], TOO_MANY),
            *each("metadata", [5, "Zebra", []], TYPE),
            ({"metadata": {"a": 5}}, TYPE, "metadata.a"),
            ({"metadata": {"a": "Zebra" * 103}}, TOO_LONG, "metadata.a"),
            ({"metadata": {"Zebra" * 13: "x"}}, TOO_LONG, "metadata"),
        ],
    ),
    "deadlines": Row(
        GENERATING,
        [
            *numbers("timeout_s", [0, -0.0, -1], [1e300, 10**18]),
            *numbers("queue_timeout_s", [0, -0.0, -5e-324], [1e300, 31536001]),
        ],
    ),
    "priority, truncate_prompt_tokens, experts_per_token": Row(
        OPENAI,
        [
            *integers("priority", -(2**31), 2**31 - 1),
            *bounds_on_tokens("truncate_prompt_tokens", 1),
            *each("truncation_side", ["middle", "", "LEFT", 5, [], {}], VALUE),
            *integers("experts_per_token", 1, 8),
        ],
    ),
    "expert_mask": Row(
        OPENAI,
        [
            *each("expert_mask", [5, "Zebra", {}, [None], [[None] * 8] * 5, [[1] * 8] * 5, [["Zebra"] * 8] * 5], TYPE),
            *each(
                "expert_mask", [[], [[]], [[True] * 8], [[True] * 9] * 5, [[False] * 8] * 5, [[True] * 8] * 9999], VALUE
            ),
        ],
    ),
    "switches": Row(
        OPENAI,
        [
            case
            for name in (
                "ignore_eos",
                "skip_special_tokens",
                "return_token_ids",
                "expert_usage",
                "expert_routing",
                "gate_logits",
            )
            for case in each(name, NO_BOOL, TYPE)
        ],
    ),
    "switches of completions": Row(
        (COMPLETIONS,), [*each("echo", NO_BOOL, TYPE), *each("add_special_tokens", NO_BOOL, TYPE)]
    ),
    "model": Row(
        GENERATING,
        [
            *each("model", [""], NO_TEXT),
            *each("model", NO_TEXT_TYPE, TYPE),
            *each("model", ["Zebra" * 200_000], TOO_LONG),
        ],
    ),
    "models that are not served": Row(
        EVERYWHERE,
        each(
            "model",
            [
                "Zebra",
                "../../etc/passwd",
                "/etc/passwd",
                "C:\\",
                "file:///Zebra",
                "hf://x",
                "a/b@rev",
                "%2e%2e%2f",
                "\0",
                f"{MODEL}\0",
                f"{MODEL} ",
                f" {MODEL}",
                MODEL.upper(),
                "\u0455moe-demo",
                "smoe\u00addemo",
                "\u202esmoe-demo",
            ],
            "model_not_found",
        ),
        status=404,
    ),
}
