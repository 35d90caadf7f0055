"""Common fields of the endpoints that translate to chat: chat has them under the same names."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, JsonValue

from server.schemas.chat import ChatCompletionRequest
from server.schemas.generation import HARMLESS, Name, Seconds, Seed
from server.schemas.validation import RequestModel

JsonObject = dict[str, JsonValue]


class TranslatedRequest(RequestModel):
    """A request that is translated to the chat request of `chat_body`."""

    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS

    model: Name | None = None
    stream: bool = False
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Seed | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Name | None = None
    timeout_s: Seconds | None = None
    queue_timeout_s: Seconds | None = None
    experts_per_token: Annotated[int, Field(ge=1)] | None = None
    expert_mask: list[list[bool]] | None = None
    expert_usage: bool | None = None

    @property
    def chat_class(self) -> type[ChatCompletionRequest]:
        """The model of the chat request."""
        return ChatCompletionRequest

    @property
    @abstractmethod
    def tool_paths(self) -> list[str]:
        """Paths of the chat's tools in this request."""

    @abstractmethod
    def chat_body(self) -> JsonObject:
        """Return the body of the same request to /v1/chat/completions. Null members count as absent."""

    def shared_body(self) -> JsonObject:
        """Return the fields that need no translation."""
        return self.model_dump(include=set(TranslatedRequest.model_fields))
