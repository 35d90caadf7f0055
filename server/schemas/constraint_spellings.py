"""Names that other servers give to constraints on the output, so that none of them is ignored here as an unknown field.

Each endpoint rejects the names that are no fields of its own, and says which field to send instead.
"""

from collections.abc import Iterable, Mapping

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
