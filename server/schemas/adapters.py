"""Request models of POST /v1/load_lora_adapter and POST /v1/unload_lora_adapter, with the fields that vLLM has."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from server.schemas.generation import HARMLESS, Name
from server.schemas.validation import RequestModel
from server.strict_json import JsonValue


class LoadAdapterRequest(RequestModel):
    """Body of POST /v1/load_lora_adapter."""

    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS

    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False


class UnloadAdapterRequest(RequestModel):
    """Body of POST /v1/unload_lora_adapter."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {"lora_int_id": ()}
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS

    lora_name: Name
