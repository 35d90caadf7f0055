"""Request models of POST /api/chat, /api/generate, /api/embed, /api/embeddings and /api/show: Ollama's API."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from server.errors import invalid_value
from server.schemas.chat import ChatCompletionRequest
from server.schemas.constraint_spellings import Kind, refused_spellings
from server.schemas.embeddings import WHOLE_CONTEXT, Texts
from server.schemas.generation import HARMLESS, Name, Penalty, Seed, StopString, StopStrings
from server.schemas.ollama_api.messages import Turns, chat_messages
from server.schemas.tools import MAX_TOOLS
from server.schemas.translated import JsonObject, TranslatedRequest, TruncatableRequest
from server.schemas.validation import ConstrainingObject, RequestModel, text_or_list

# Options under other names in chat. All others have the same name.
CHAT_NAMES = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}
NO_EFFECT = {"num_ctx"}  # the context is the server's
FORMATS = refused_spellings("format").keys() - {"function_call"}  # other names of a format
MAX_EXACT = 1 << 53  # a decimal beyond it may stand for several integers
ROOM_SHARE = 8  # turns are left out until a reply has this share of the context, or its limit
NO_LIMIT = 0  # num_predict is -1 or -2 for as many tokens as the context has room for


def _stop_texts(value: object) -> object:
    texts = text_or_list(value, str)
    return [text for text in texts if text != ""] if isinstance(texts, list) else texts


def _whole(value: object) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT:
        return int(value)
    return value


WHOLE = BeforeValidator(_whole)  # Ollama's clients may have read 40 as 40.0


class OllamaOptions(ConstrainingObject):
    """Options of the sampling. Those that are no fields here have no effect, and are named as unknown fields."""

    path: ClassVar[str] = "options"
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {"limit": "num_predict", "stop": "stop"}

    num_predict: Annotated[int, Field(ge=-2), WHOLE] | None = None
    num_ctx: JsonValue = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1), WHOLE] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0.0, le=2.0)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[Seed, WHOLE] | None = None
    stop: Annotated[StopStrings, BeforeValidator(_stop_texts, json_schema_input_type=StopString | StopStrings)] = Field(
        default_factory=list
    )

    def chat_fields(self) -> JsonObject:
        """Return the given options as fields of a chat request."""
        given = self.model_dump(include=self.model_fields_set - NO_EFFECT, exclude_none=True)
        if given.get("num_predict", 0) <= NO_LIMIT:
            given.pop("num_predict", None)
        if given.get("top_p") == 0.0:  # the likeliest token alone
            given |= {"top_p": 1.0, "top_k": 1}
        return {CHAT_NAMES.get(name, name): value for name, value in given.items()}


class ShrinkingChatRequest(ChatCompletionRequest):
    """A chat whose limit shrinks to the room after the prompt, instead of being refused."""

    @property
    def has_default_limit(self) -> bool:
        return True


class RawPromptRequest(ShrinkingChatRequest):
    """The same without a conversation: the prompt is the text of the only message, as it is."""

    @property
    def raw_prompt(self) -> str | None:
        return "".join(self.contents)


class GeneratingRequest(TranslatedRequest):
    """Common fields of /api/chat and /api/generate. The model stays loaded, so that keep_alive has no effect."""

    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {
        "format": "format",
        "limit": "options.num_predict",
        "stop": "options.stop",
        "time": "timeout_s",
        "adapter": "model",
    }
    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = refused_spellings("format")
    instead: ClassVar[Mapping[str, str]] = dict.fromkeys(FORMATS, "format")
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {**HARMLESS, "shift": (False,), "think": (False,)}

    stream: bool = True
    format: Literal["", "json"] | dict[str, JsonValue] | None = None
    options: OllamaOptions = Field(default_factory=OllamaOptions)
    keep_alive: JsonValue = None

    @property
    def chat_class(self) -> type[ChatCompletionRequest]:
        return ShrinkingChatRequest

    @property
    def tool_paths(self) -> list[str]:
        return []  # tools are in the same place

    @property
    def has_tools(self) -> bool:
        """True if the model may call tools."""
        return False

    @property
    @abstractmethod
    def is_empty(self) -> bool:
        """True if nothing is to be generated: clients load a model so."""

    @abstractmethod
    def prompt_body(self) -> JsonObject:
        """Return the chat's messages and tools."""

    def chat_body(self) -> JsonObject:
        shared = {name: value for name, value in self.shared_body().items() if value is not None}
        return {**shared, **self.options.chat_fields(), **self._format_body(), **self.prompt_body()}

    def _format_body(self) -> JsonObject:
        if not self.format:
            return {}
        if self.format == "json":
            return {"response_format": {"type": "json_object"}}
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": self.format}}}


class OllamaChatRequest(GeneratingRequest, TruncatableRequest):
    """POST /api/chat."""

    turns_field: ClassVar[str | None] = "messages"

    messages: Turns = Field(default_factory=list)
    tools: Annotated[list[dict[str, JsonValue]], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)

    truncate: bool = True

    @classmethod
    def cuts_turns(cls, body: Mapping[str, JsonValue]) -> bool:
        return body.get("truncate") is not False

    @property
    def may_be_cut(self) -> bool:
        return self.truncate

    def turn_starts(self) -> list[int]:
        return [i for i, message in enumerate(self.messages) if message.role == "user"]

    def without_turns(self, start: int) -> Self:
        system = [message for message in self.messages[:start] if message.role == "system"]
        return self.model_copy(update={"messages": [*system, *self.messages[start:]]})

    def least_room(self, max_model_len: int) -> int:
        """Ollama's server shifts its context while a reply grows. This one has to leave room for the reply before."""
        limit = self.options.num_predict or NO_LIMIT
        room = max(1, max_model_len // ROOM_SHARE)
        return min(limit, room) if limit > NO_LIMIT else room

    @property
    def is_empty(self) -> bool:
        return not self.messages

    @property
    def has_tools(self) -> bool:
        return bool(self.tools)

    def prompt_body(self) -> JsonObject:
        messages: list[JsonValue] = [*chat_messages(self.messages)]
        tools: list[JsonValue] = [*self.tools]
        return {"messages": messages, "tools": tools}


class OllamaGenerateRequest(GeneratingRequest):
    """POST /api/generate: a chat of one message, or with `raw` a text that is continued as it is."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {
        **GeneratingRequest.unsupported,
        "context": ([],),
        "images": ([],),
        "suffix": ("",),
        "template": ("",),
    }
    hints: ClassVar[Mapping[str, str]] = {
        "suffix": "No model that is served here was trained to fill in the text between two others."
    }
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {**GeneratingRequest.harmless, "truncate": (False,)}

    prompt: str = ""
    system: str = ""
    raw: bool = False

    @model_validator(mode="after")
    def _check_raw(self) -> "OllamaGenerateRequest":
        if self.raw and self.system:
            raise invalid_value("'system' must be empty with 'raw', which sends the prompt as it is.", "system")
        return self

    @property
    def chat_class(self) -> type[ChatCompletionRequest]:
        return RawPromptRequest if self.raw else super().chat_class

    @property
    def is_empty(self) -> bool:
        return not self.prompt

    def prompt_body(self) -> JsonObject:
        system: list[JsonValue] = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*system, {"role": "user", "content": self.prompt}]}


class EmbeddingTextsRequest(RequestModel):
    """Common fields of /api/embed and /api/embeddings."""

    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {"adapter": "model"}
    writes_output: ClassVar[bool] = False

    model: Name | None = None
    keep_alive: JsonValue = None

    @abstractmethod
    def embedding_body(self) -> JsonObject:
        """Return the body of the same request to /v1/embeddings."""


class OllamaEmbedRequest(EmbeddingTextsRequest):
    """POST /api/embed."""

    input: Texts
    truncate: bool = True
    dimensions: Annotated[int, Field(ge=1)] | None = None

    def embedding_body(self) -> JsonObject:
        texts: list[JsonValue] = [*self.input]
        cut = WHOLE_CONTEXT if self.truncate else None
        return {"model": self.model, "input": texts, "dimensions": self.dimensions, "truncate_prompt_tokens": cut}


class OllamaEmbeddingsRequest(EmbeddingTextsRequest):
    """POST /api/embeddings, which is older than /api/embed: one text, cut at the end of the context."""

    prompt: str = ""
    options: JsonValue = None

    def embedding_body(self) -> JsonObject:
        return {"model": self.model, "input": [self.prompt], "truncate_prompt_tokens": WHOLE_CONTEXT}


class OllamaShowRequest(RequestModel):
    """POST /api/show. `name` is the older name of `model`."""

    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS

    model: Name | None = None
    name: Name | None = None
