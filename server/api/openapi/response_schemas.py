"""JSON Schemas of the replies: the members that a client may rely on."""

from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NULLABLE_STRING: Schema = {"type": ["string", "null"]}
IDS: Schema = {"type": "array", "items": INTEGER}


def an_object(**properties: Schema) -> Schema:
    """Return the schema of an object that always has these members."""
    return {"type": "object", "required": list(properties), "properties": properties}


def an_array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def one_of(*values: object) -> Schema:
    return {"enum": list(values)}


USAGE = an_object(
    prompt_tokens=INTEGER,
    completion_tokens=INTEGER,
    total_tokens=INTEGER,
    prompt_tokens_details=an_object(cached_tokens=INTEGER),
)
FINISH_REASON = one_of("stop", "length", "tool_calls", None)
STOP_REASON: Schema = {"type": ["string", "integer", "null"]}
ENVELOPE = {
    "id": STRING,
    "created": INTEGER,
    "model": STRING,
    "system_fingerprint": STRING,
    "seed": INTEGER,
    "usage": USAGE,
}
COMPLETION_CHOICE = an_object(
    index=INTEGER,
    text=STRING,
    logprobs={"type": ["object", "null"]},
    finish_reason=FINISH_REASON,
    stop_reason=STOP_REASON,
)
COMPLETION = an_object(**ENVELOPE, object=one_of("text_completion"), choices=an_array(COMPLETION_CHOICE))
CHAT_CHOICE = an_object(
    index=INTEGER,
    message=an_object(role=one_of("assistant"), content=NULLABLE_STRING, refusal={"type": "null"}),
    logprobs={"type": ["object", "null"]},
    finish_reason=FINISH_REASON,
    stop_reason=STOP_REASON,
)
CHAT = an_object(**ENVELOPE, object=one_of("chat.completion"), choices=an_array(CHAT_CHOICE))
RESPONSE = an_object(
    id=STRING,
    object=one_of("response"),
    created_at=INTEGER,
    model=STRING,
    status=one_of("completed", "incomplete"),
    output=an_array(an_object(id=STRING, type=one_of("message", "function_call"), status=STRING)),
    usage=an_object(input_tokens=INTEGER, output_tokens=INTEGER, total_tokens=INTEGER),
)
MESSAGE = an_object(
    id=STRING,
    type=one_of("message"),
    role=one_of("assistant"),
    model=STRING,
    content=an_array(an_object(type=one_of("text", "tool_use"))),
    stop_reason=one_of("end_turn", "max_tokens", "stop_sequence", "tool_use"),
    stop_sequence=NULLABLE_STRING,
    usage=an_object(input_tokens=INTEGER, output_tokens=INTEGER, cache_read_input_tokens=INTEGER),
)
EMBEDDED = {"id": STRING, "created": INTEGER, "model": STRING, "system_fingerprint": STRING, "usage": USAGE}
EMBEDDING = an_object(
    object=one_of("embedding"), index=INTEGER, embedding={"type": ["array", "string"], "items": {"type": "number"}}
)
SCORE = an_object(object=one_of("score"), index=INTEGER, score={"type": "number"})
EMBEDDINGS = an_object(**EMBEDDED, object=one_of("list"), data=an_array(EMBEDDING))
SCORES = an_object(**EMBEDDED, object=one_of("list"), data=an_array(SCORE))
RANKING = an_object(**EMBEDDED, results=an_array(an_object(index=INTEGER, relevance_score={"type": "number"})))
TOKEN_COUNT = an_object(input_tokens=INTEGER)
MODEL = an_object(
    id=STRING,
    object=one_of("model"),
    created=INTEGER,
    owned_by=STRING,
    root=STRING,
    parent=NULLABLE_STRING,
    max_model_len={"type": ["integer", "null"]},
    generation_defaults={"type": ["object", "null"]},
)
DELETED_MODEL = an_object(id=STRING, object=one_of("model"), deleted=one_of(True))
MODELS = an_object(object=one_of("list"), data=an_array(MODEL))
TOKENS = an_object(tokens=IDS, count=INTEGER, max_model_len=INTEGER)
PROMPT = an_object(prompt=STRING)
TOKENIZER_INFO = an_object(
    bos_token=NULLABLE_STRING, eos_token=NULLABLE_STRING, chat_template=NULLABLE_STRING, vocab_size=INTEGER
)
FILE = an_object(
    id=STRING,
    object=one_of("file"),
    bytes=INTEGER,
    created_at=INTEGER,
    filename=STRING,
    purpose=one_of("batch", "batch_output"),
    status=one_of("processed"),
)
DELETED_FILE = an_object(id=STRING, object=one_of("file"), deleted=one_of(True))
BATCH = an_object(
    id=STRING,
    object=one_of("batch"),
    endpoint=STRING,
    input_file_id=STRING,
    status=one_of(
        "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
    ),
    output_file_id=NULLABLE_STRING,
    error_file_id=NULLABLE_STRING,
    request_counts=an_object(total=INTEGER, completed=INTEGER, failed=INTEGER),
)


def a_page(items: Schema) -> Schema:
    """Return the schema of a page of a list."""
    return an_object(
        object=one_of("list"),
        data=an_array(items),
        first_id=NULLABLE_STRING,
        last_id=NULLABLE_STRING,
        has_more={"type": "boolean"},
    )


EXPERTS = an_object(since={"type": "number"}, layers=an_array(an_object(layer=INTEGER, tokens=IDS)))
HEALTH = an_object(status=STRING)
VERSION = an_object(version=STRING)
LOAD = an_object(server_load=INTEGER, running=INTEGER, waiting=INTEGER)
NUMBERS = an_array({"type": ["number", "null"]})
RECENT_LOAD = an_object(
    interval_s=INTEGER,
    prompt_tokens_per_s=NUMBERS,
    generated_tokens_per_s=NUMBERS,
    running=NUMBERS,
    waiting=NUMBERS,
    kv_usage=NUMBERS,
    step_ms=NUMBERS,
    ttft_p50_ms=NUMBERS,
    ttft_p99_ms=NUMBERS,
    accepted_tokens_per_s=NUMBERS,
)
ERROR = an_object(
    error=an_object(message=STRING, type=STRING, param=NULLABLE_STRING, code=NULLABLE_STRING),
)
ANTHROPIC_ERROR = an_object(type=one_of("error"), error=an_object(type=STRING, message=STRING))
OLLAMA_VERSION = an_object(version=STRING)
OLLAMA_DETAILS = an_object(
    parent_model=STRING,
    format=STRING,
    family=STRING,
    families=an_array(STRING),
    parameter_size=STRING,
    quantization_level=STRING,
)
OLLAMA_MODELS = an_object(
    models=an_array(
        an_object(name=STRING, model=STRING, modified_at=STRING, size=INTEGER, digest=STRING, details=OLLAMA_DETAILS)
    )
)
OLLAMA_MODEL = an_object(
    template=STRING,
    details=OLLAMA_DETAILS,
    model_info={"type": "object"},
    capabilities=an_array(one_of("completion", "tools", "embedding")),
    modified_at=STRING,
)
OLLAMA_REPLY = {"model": STRING, "created_at": STRING, "done": {"type": "boolean"}}
OLLAMA_CHAT = an_object(**OLLAMA_REPLY, message=an_object(role=one_of("assistant"), content=STRING))
OLLAMA_GENERATED = an_object(**OLLAMA_REPLY, response=STRING)
OLLAMA_EMBEDDINGS = an_object(
    model=STRING,
    embeddings=an_array(an_array({"type": "number"})),
    total_duration=INTEGER,
    prompt_eval_count=INTEGER,
)
OLLAMA_EMBEDDING = an_object(embedding=an_array({"type": "number"}))
OLLAMA_ERROR = an_object(error=STRING)
