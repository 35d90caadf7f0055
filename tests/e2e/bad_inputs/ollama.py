"""Fields of Ollama's API. Its errors are a text, which names the field; the codes are for the reader."""

from tests.e2e.bad_inputs.rows import (
    ABOVE,
    BELOW,
    CONTEXT,
    CONTEXT_CODE,
    HI,
    MISSING,
    NO_BOOL,
    NO_INT,
    NO_ITEM,
    NO_TEXT,
    NO_TEXT_TYPE,
    NUMBER_ABOVE,
    NUMBER_BELOW,
    OLLAMA_CHAT,
    OLLAMA_EMBED,
    OLLAMA_EMBEDDINGS,
    OLLAMA_GENERATE,
    OLLAMA_GENERATING,
    OLLAMA_RAW,
    OLLAMA_SHOW,
    TOO_LONG,
    TOO_MANY,
    TYPE,
    UNSUPPORTED,
    VALUE,
    Body,
    Row,
    each,
)

Case = tuple[Body, str, str | None]
M0 = "messages[0]"


def options(name: str, values: list[object], code: str) -> list[Case]:
    """Return a case per value of one option."""
    return [({"options": {name: value}}, code, f"options.{name}") for value in values]


OLLAMA_ROWS: dict[str, Row] = {
    "ollama: options": Row(
        OLLAMA_GENERATING,
        [
            *each("options", [5, "Zebra", [], True], TYPE),
            *options("num_predict", [-3, -(2**63)], BELOW),
            *options("num_predict", [True, "3", "Zebra", 1.5, [], {}], TYPE),
            *options("temperature", [-0.1, -5e-324], NUMBER_BELOW),
            *options("temperature", [2.01, 1e300], NUMBER_ABOVE),
            *options("top_p", [1.01], NUMBER_ABOVE),
            *options("min_p", [-1], NUMBER_BELOW),
            *options("repeat_penalty", [0, -1], NUMBER_BELOW),
            *options("presence_penalty", [2.5], NUMBER_ABOVE),
            *options("top_k", [-2], BELOW),
            *options("seed", [True, "Zebra", 1.5, 1e20, -1e19], TYPE),
            *options("stop", [5, {}], TYPE),
            ({"options": {"stop": [5]}}, TYPE, "options.stop[0]"),
            *options("max_tokens", [3], UNSUPPORTED),
        ],
    ),
    "ollama: formats": Row(
        OLLAMA_GENERATING,
        [
            *each("format", ["Zebra", "JSON", 5, True, []], VALUE),
            ({"format": {"type": "Zebra"}}, VALUE, "format"),
            ({"format": {"not": {"pattern": "Zebra"}}}, VALUE, "format"),
            ({"response_format": {"type": "json_object"}}, UNSUPPORTED, "response_format"),
        ],
    ),
    "ollama: names": Row(
        (*OLLAMA_GENERATING, OLLAMA_EMBED, OLLAMA_EMBEDDINGS, OLLAMA_SHOW),
        [
            *each("model", NO_TEXT_TYPE, TYPE),
            *each("model", ["Zebra" * 200_000], TOO_LONG),
        ],
    ),
    "ollama: chat": Row(
        (OLLAMA_CHAT,),
        [
            *each("messages", [5, {}, "Zebra", True], TYPE),
            *each("messages", [[HI] * 10_001], TOO_MANY),
            *[({"messages": [item]}, TYPE, M0) for item in ("Zebra", 5)],
            ({"messages": [{"content": "x"}]}, MISSING, f"{M0}.role"),
            ({"messages": [{"role": "Zebra", "content": "x"}]}, VALUE, f"{M0}.role"),
            ({"messages": [{"role": "user", "content": 5}]}, TYPE, f"{M0}.content"),
            ({"messages": [{**HI, "images": ["Zebra"]}]}, UNSUPPORTED, f"{M0}.images"),
            ({"messages": [{"role": "tool", "content": "Zebra"}]}, VALUE, M0),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, UNSUPPORTED, None),
            *each("tools", [5, "Zebra", {}], TYPE),
            *each("truncate", NO_BOOL, TYPE),
            ({"messages": [{"role": "user", "content": "Zebra " * CONTEXT}]}, CONTEXT_CODE, None),
        ],
    ),
    "ollama: generate": Row(
        (OLLAMA_GENERATE, OLLAMA_RAW),
        [
            *each("prompt", NO_TEXT_TYPE, TYPE),
            ({"prompt": "Zebra " * CONTEXT}, CONTEXT_CODE, None),
            *each("system", NO_TEXT_TYPE, TYPE),
            *each("raw", NO_BOOL, TYPE),
            *each("images", [["Zebra"]], UNSUPPORTED),
            *each("suffix", ["Zebra", 5], UNSUPPORTED),
            *each("template", ["Zebra"], UNSUPPORTED),
            *each("context", [[5]], UNSUPPORTED),
            ({"raw": True, "system": "Zebra"}, VALUE, "system"),
        ],
    ),
    "ollama: embed": Row(
        (OLLAMA_EMBED,),
        [
            *each("input", [None, ...], MISSING),
            *each("input", [5, True, {}], TYPE),
            ({"input": [5]}, TYPE, "input[0]"),
            ({"input": ""}, NO_TEXT, "input[0]"),
            ({"input": ["Zebra", ""]}, NO_TEXT, "input[1]"),
            *each("input", [[]], NO_ITEM),
            *each("input", [["Zebra"] * 2049], TOO_MANY),
            *each("dimensions", [0, -1], BELOW),
            *each("dimensions", [10**6], ABOVE),
            *each("dimensions", NO_INT, TYPE),
            *each("truncate", NO_BOOL, TYPE),
            ({"input": "Zebra " * CONTEXT, "truncate": False}, CONTEXT_CODE, None),
        ],
    ),
    "ollama: embeddings": Row((OLLAMA_EMBEDDINGS,), [*each("prompt", NO_TEXT_TYPE, TYPE)]),
    "ollama: show": Row((OLLAMA_SHOW,), [*each("name", NO_TEXT_TYPE, TYPE)]),
}
