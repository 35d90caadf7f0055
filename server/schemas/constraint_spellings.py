"""Names that other servers give to constraints on the output, so that none of them is ignored here as an unknown field.

Each endpoint rejects the names that are no fields of its own, and says which field to send instead. SPELLINGS are part
of the API's description. OTHER_NAMES are not: these belong to other APIs as a whole, and match in any case, with
underscores or without (`max_new_tokens`, `maxNewTokens`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from server.strict_json import JsonValue

# The name, and the values that ask for nothing and are accepted.
SPELLINGS: Mapping[str, tuple[JsonValue, ...]] = {
    "ebnf": (),  # SGLang
    "format": ("",),  # Ollama
    "function_call": ("none", "auto"),  # OpenAI, before tools
    "grammar": ("",),  # llama.cpp, TGI
    "grammar_lazy": (False,),  # llama.cpp
    "grammar_triggers": ([],),
    "guided_choice": (),  # vLLM before 0.12
    "guided_decoding": ({},),
    "guided_grammar": (),
    "guided_json": (),
    "guided_json_object": (False,),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "json_mode": (False,),
    "json_schema": ({},),  # llama.cpp, SGLang
    "nvext": ({},),  # NIM
    "output_config": ({},),  # Anthropic
    "output_format": (),
    "regex": (),  # SGLang
    "response_format": ({"type": "text"},),  # OpenAI
    "response_json_schema": (),  # Gemini
    "response_mime_type": ("text/plain",),
    "response_schema": (),
    "stop_regex": ([], ""),  # SGLang
    "structural_tag": (),
    "structured_outputs": ({},),  # vLLM
}


def refused_spellings(*fields: str) -> dict[str, tuple[JsonValue, ...]]:
    """Return the spellings that are no fields of an endpoint, with the values of each that ask for nothing."""
    return {name: harmless for name, harmless in SPELLINGS.items() if name not in fields}


# The field of completions and chat that does the work of each name.
OF_CHAT: Mapping[str, str] = {
    "function_call": "tool_choice",
    "guided_decoding": "structured_outputs",
    "nvext": "structured_outputs",
    "stop_regex": "stop",
    "structural_tag": "structured_outputs.grammar",
}


def all_done_by(field: str, spellings: Iterable[str]) -> dict[str, str]:
    """Return the field of an endpoint with a single one for formats to send instead of each name."""
    return {name: "tool_choice" if name == "function_call" else field for name in spellings}


def fields_of_chat(spellings: Iterable[str]) -> dict[str, str]:
    """Return the field of completions and chat to send instead of each name."""
    return {name: OF_CHAT.get(name, "response_format") for name in spellings}


Kind = Literal["format", "arguments", "limit", "minimum", "stop", "tokens", "tools", "time", "adapter", "members"]


@dataclass(frozen=True)
class OtherName:
    """Constraint that a name asks for, and the values that ask for nothing."""

    kind: Kind
    harmless: tuple[JsonValue, ...]


# The names of each kind, and values that ask for nothing. Names of this API's own fields are among them: an endpoint
# without such a field rejects them, and every endpoint does in camel case.
_NAMES: Mapping[Kind, tuple[str, tuple[JsonValue, ...]]] = {
    "format": (
        "choice force_json gbnf grammar_string guided_lark json json_object json_output jsonschema lark lark_grammar "
        "output_schema output_type regex_pattern regex_string response_regex schema structured structured_decoding "
        "structured_output text_format " + " ".join(SPELLINGS.keys() - {"function_call", "stop_regex"}),
        ({}, "", "text", {"type": "text"}, False),
    ),
    "arguments": ("input_schema parameters_json_schema", ({},)),  # of a tool
    "limit": (
        "max_completion_tokens max_gen_len max_length max_new_tokens max_output_tokens max_tokens "
        "max_tokens_to_sample n_predict num_predict",
        (-1,),
    ),
    "minimum": ("min_length min_new_tokens min_tokens", (0,)),
    "stop": (
        "custom_stopping_strings stop stop_regex stop_sequence stop_sequences stop_strings stop_token_ids stop_tokens "
        "stop_words stop_words_list stopping_strings",
        ([], ""),
    ),
    "tokens": (
        "allowed_token_ids allowed_tokens bad_words bad_words_ids ban_eos_token banned_strings banned_tokens "
        "begin_suppress_tokens custom_logit_processor custom_token_bans force_words_ids forced_bos_token_id ignore_eos "
        "logit_bias logits_processors suppress_tokens",
        ([], {}, "", False),
    ),
    "tools": (
        "function_call functions max_tool_calls strict_tools tool_choice tool_config",
        ("none", "auto", {}, [], False),
    ),
    "time": ("max_time t_max_predict_ms", (-1, 0)),
    # An adapter is a model here, with a name of its own: another one must not answer.
    "adapter": ("adapter adapter_id adapter_name lora lora_adapter lora_name lora_path lora_request", ([], {}, "")),
    # Objects of options, which other APIs and client libraries have: rejected for constraints among their members.
    "members": (
        "extra_body generation_config inference_config options parameters sampling_params sampling_parameters text",
        ({},),
    ),
}


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


OTHER_NAMES: Mapping[str, OtherName] = {
    **{_plain(name): OtherName(kind, harmless) for kind, (names, harmless) in _NAMES.items() for name in names.split()},
    "paralleltoolcalls": OtherName("tools", (True,)),
    "disableparalleltooluse": OtherName("tools", (False,)),
}


def other_name(name: str) -> OtherName | None:
    """Return what a name constrains in other APIs; None if it is not known as a constraint."""
    return OTHER_NAMES.get(_plain(name))
