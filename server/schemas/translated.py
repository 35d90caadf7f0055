"""Common fields of the endpoints that translate to chat: chat has them under the same names."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

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


class TruncatableRequest(TranslatedRequest):
    """A request whose oldest turns may be left out where the conversation is too long."""

    @property
    @abstractmethod
    def may_be_cut(self) -> bool:
        """True if the request allows it."""

    @abstractmethod
    def turn_starts(self) -> list[int]:
        """Return the positions of the user's messages."""

    @abstractmethod
    def without_turns(self, start: int) -> Self:
        """Return the request without what comes before position `start`, except system and developer messages."""

    def least_room(self, max_model_len: int) -> int:
        """Return for how many tokens of the reply turns are left out, in a context of `max_model_len`."""
        return 1
