"""Request model of POST /v1/batches."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from server.schemas.generation import HARMLESS
from server.schemas.validation import RequestModel
from server.strict_json import JsonValue

MAX_METADATA = 16  # OpenAI's limits
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class CreateBatchRequest(RequestModel):
    """Body of POST /v1/batches."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {"output_expires_after": ()}
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS

    input_file_id: Annotated[str, Field(max_length=64)]
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)] | None = None
