"""The requests this server understands, each field with its range.

Codes and paths of the errors are validation.py's business, what the sampling fields mean to the engine sampling.py's.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from server.errors import ApiError, invalid_value, unsupported_parameter
from server.strict_json import JsonValue
from server.validation import RequestModel, refuse_unsupported_members, unknown_fields, validate

__all__ = [
    "ChatCompletionRequest",
    "ChatMessage",
    "CompletionRequest",
    "DetokenizeRequest",
    "GenerationRequest",
    "StreamOptions",
    "TokenizeRequest",
    "unknown_fields",
    "validate",
]

MAX_PROMPTS = 128
MAX_MESSAGES = 10_000
MAX_CHOICES = 8
MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_LOGPROBS = 20
MAX_NAME_CHARS = 512

# What clients may ask for elsewhere and this server does not do, with the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[JsonValue, ...]] = {
    "bad_words": ([],),
    "documents": ([],),
    "expert_mask": (),
    "expert_routing": (False,),
    "expert_usage": (False,),
    "experts_per_token": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "mm_processor_kwargs": ({},),
    "multi_modal_data": ({},),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "queue_timeout_s": (),
    "structured_outputs": (),
    "timeout_s": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
UNSUPPORTED_IN_CHAT: Mapping[str, tuple[JsonValue, ...]] = {
    "audio": (),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _prompts(value: object) -> list[str] | list[list[int]]:
    """A string, a list of strings, a list of ids, or a list of lists of ids, as a list of prompts of one kind."""
    if isinstance(value, str):
        return _prompts([value])
    if not isinstance(value, list):
        raise _prompt_type()
    if not value:
        raise PydanticCustomError("too_short", "")
    if _is_ids(value):
        return [value]
    if len(value) > MAX_PROMPTS:
        raise PydanticCustomError("too_long", "", {"max_length": MAX_PROMPTS})
    if all(isinstance(item, str) for item in value):
        if not all(value):
            raise PydanticCustomError("string_too_short", "")
        return value
    if not all(isinstance(item, list) and _is_ids(item) for item in value):
        raise _prompt_type()
    if not all(value):
        raise PydanticCustomError("too_short", "")
    return value


def _is_ids(items: list[object]) -> bool:
    return all(type(item) is int for item in items)


def _prompt_type() -> PydanticCustomError:
    return PydanticCustomError("prompt_type", "")


Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
DecimalId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]


class StreamOptions(RequestModel):
    """What a stream tells besides its text."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ResponseFormat(RequestModel):
    """Plain text. A grammar that cannot be honoured is refused."""

    type: Literal["text", "json_object", "json_schema"]

    @model_validator(mode="after")
    def _text_only(self) -> "ResponseFormat":
        if self.type != "text":
            raise unsupported_parameter("response_format", "'response_format' can only be of type 'text' here.")
        return self


class GenerationRequest(RequestModel):
    """What completions and chat have in common. None: not given, the checkpoint's or the server's default holds."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = UNSUPPORTED

    model: Name
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=2.0)] | None = None
    stop: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS), BeforeValidator(_one_or_many)] = Field(
        default_factory=list
    )
    stop_token_ids: list[int] = Field(default_factory=list, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    logit_bias: dict[DecimalId, Bias] = Field(default_factory=dict)
    allowed_token_ids: Annotated[list[int], Field(min_length=1)] | None = None
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = 0
    cache_salt: Name = ""
    user: Name | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "GenerationRequest":
        if not self.model:
            raise ApiError("'model' is required.", param="model", code="missing_required_parameter")
        if self.stream_options is not None and not self.stream:
            raise invalid_value("'stream_options' goes with 'stream': true only.", "stream_options")
        self._check_lengths()
        return self

    def _check_lengths(self) -> None:
        limit = self.completion_limit
        if limit is not None and self.min_tokens > limit:
            raise invalid_value("'min_tokens' must not exceed the limit on generated tokens.", "min_tokens")

    @property
    def completion_limit(self) -> int | None:
        """Tokens to generate at most; None where the endpoint's default holds."""
        return self.max_tokens

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """None: no logprobs; k: those of the tokens and of the k likeliest at each position."""

    @property
    def has_prompt_logprobs(self) -> bool:
        """Whether the prompt's own tokens are to be scored."""
        return False


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {**UNSUPPORTED, "suffix": ("",)}

    prompt: Annotated[list[str] | list[list[int]], PlainValidator(_prompts)]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    best_of: Annotated[int, Field(ge=1)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            message = "'max_tokens' may be 0 only together with 'echo'."
            raise ApiError(message, param="max_tokens", code="integer_below_min_value")
        if self.best_of is not None and self.best_of != self.n:
            raise unsupported_parameter("best_of", "'best_of' must equal 'n': nothing is generated to be thrown away.")
        if self.best_of is not None and self.best_of > 1 and self.stream:
            raise invalid_value("'best_of' cannot be streamed.", "best_of")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def has_prompt_logprobs(self) -> bool:
        return self.echo and self.logprobs is not None


class TextPart(RequestModel):
    """One part of a message's content. Other kinds, images for one, are refused by their type."""

    type: str
    text: str | None = None


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class ChatMessage(RequestModel):
    """One turn. "developer" is OpenAI's newer word for "system"."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {
        "audio": (),
        "function_call": (),
        "prefix": (False,),
        "tool_call_id": (),
        "tool_calls": ([],),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], Field(min_length=1), BeforeValidator(_as_parts)]

    @property
    def text(self) -> str:
        """The parts' texts, one per line."""
        return "\n".join(part.text or "" for part in self.content)

    @property
    def template_role(self) -> str:
        """The role as chat templates know it."""
        return "system" if self.role == "developer" else self.role


def _turns(value: object) -> object:
    if isinstance(value, list):
        refuse_unsupported_members(ChatMessage, value, "messages")
    return value


Turns = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES), BeforeValidator(_turns)]


class Conversation(RequestModel):
    """Messages, and how the rendered conversation ends."""

    messages: Turns
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @model_validator(mode="after")
    def _check_ending(self) -> "Conversation":
        for index, message in enumerate(self.messages):
            _check_parts(index, message)
        if self.continue_final_message and self.add_generation_prompt:
            reason = "'continue_final_message' and 'add_generation_prompt' exclude each other."
            raise invalid_value(reason, "continue_final_message")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            reason = "'continue_final_message' takes a last message of the assistant."
            raise invalid_value(reason, "continue_final_message")
        return self

    @property
    def with_generation_prompt(self) -> bool:
        """The template's switch: on, unless the last message is to be continued."""
        return not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt


def _check_parts(index: int, message: ChatMessage) -> None:
    for position, part in enumerate(message.content):
        param = f"messages[{index}].content[{position}]"
        if part.type != "text":
            code = "unsupported_value"
            raise ApiError("Only parts of type 'text' are supported.", param=f"{param}.type", code=code)
        if part.text is None:
            code = "missing_required_parameter"
            raise ApiError(f"'{param}.text' is required.", param=f"{param}.text", code=code)


class ChatCompletionRequest(GenerationRequest, Conversation):
    """POST /v1/chat/completions."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {**UNSUPPORTED, **UNSUPPORTED_IN_CHAT}

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid_value("'top_logprobs' goes with 'logprobs': true only.", "top_logprobs")
        limits = {limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None}
        if len(limits) > 1:
            message = "'max_tokens' and 'max_completion_tokens' differ; give one of them."
            raise invalid_value(message, "max_completion_tokens")
        return self

    @property
    def completion_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class TokenizeRequest(RequestModel):
    """POST /tokenize: a prompt, or a conversation to be rendered first."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = UNSUPPORTED_IN_CHAT

    model: Name | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    messages: Turns | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            message = "Give either 'prompt' or 'messages'."
            raise ApiError(message, param="prompt", code="missing_required_parameter")
        self.conversation  # noqa: B018 (checks what the messages' fields must satisfy together)
        return self

    @property
    def conversation(self) -> Conversation | None:
        """The messages with their ending, where there are messages."""
        if self.messages is None:
            return None
        return Conversation(
            messages=self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
        )


class DetokenizeRequest(RequestModel):
    """POST /detokenize."""

    model: Name | None = None
    tokens: list[int]
    skip_special_tokens: bool = False

    @model_validator(mode="after")
    def _not_negative(self) -> "DetokenizeRequest":
        if any(token < 0 for token in self.tokens):
            raise ApiError("'tokens' must be token ids.", param="tokens", code="integer_below_min_value")
        return self
