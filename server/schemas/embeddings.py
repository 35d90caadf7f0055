"""Request models of POST /v1/embeddings, POST /v1/score and POST /v1/rerank."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from server.errors import ApiError, invalid_value
from server.schemas.constraint_spellings import Kind
from server.schemas.generation import HARMLESS, Name, Seconds
from server.schemas.prompts import Text, prompts_up_to
from server.schemas.validation import RequestModel, text_or_list
from server.strict_json import JsonValue

MAX_INPUTS = 2048  # as OpenAI
WHOLE_CONTEXT = -1  # of truncate_prompt_tokens: as many tokens as the model takes

# Fields of other servers, with the values that ask for what this server does anyway.
UNSUPPORTED: Mapping[str, tuple[JsonValue, ...]] = {
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "messages": (),
    "multi_modal_data": ({},),
    "normalize": (True,),
    "output_dimension": (),
    "output_dtype": ("float",),
    "truncation_side": ("right",),
}


def _texts(value: object) -> object:
    return text_or_list(value, str)


TextList = Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
Texts = Annotated[TextList, BeforeValidator(_texts, json_schema_input_type=Text | TextList)]


class EmbeddedRequest(RequestModel):
    """Common fields of requests whose texts are embedded."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = UNSUPPORTED
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = {"adapter": "model"}
    writes_output: ClassVar[bool] = False
    instead: ClassVar[Mapping[str, str]] = {"messages": "input", "output_dimension": "dimensions"}

    model: Name | None = None
    user: Name | None = None
    add_special_tokens: bool = True
    truncate_prompt_tokens: Annotated[int, Field(ge=WHOLE_CONTEXT)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = 0
    cache_salt: Name = ""
    timeout_s: Seconds | None = None
    queue_timeout_s: Seconds | None = None

    @model_validator(mode="after")
    def _check_truncation(self) -> "EmbeddedRequest":
        if self.truncate_prompt_tokens == 0:
            message = f"'truncate_prompt_tokens' must be at least 1, or {WHOLE_CONTEXT} for the whole context."
            raise ApiError(message, param="truncate_prompt_tokens", code="integer_below_min_value")
        return self


class EmbeddingRequest(EmbeddedRequest):
    """POST /v1/embeddings."""

    input: Annotated[list[str] | list[list[int]], prompts_up_to(MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


class Document(RequestModel):
    """A document as an object, as Jina's and Cohere's clients may send it."""

    text: Text


class RerankRequest(EmbeddedRequest):
    """POST /v1/rerank: documents by their similarity to a query, in Jina's shape."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {
        **UNSUPPORTED,
        "max_chunks_per_doc": (),
        "max_tokens_per_doc": (),
        "rank_fields": (),
    }
    instead: ClassVar[Mapping[str, str]] = {"messages": "query", "max_tokens_per_doc": "truncate_prompt_tokens"}

    query: Text
    documents: Annotated[list[Text | Document], Field(min_length=1, max_length=MAX_INPUTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = True

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class ScoreRequest(EmbeddedRequest):
    """POST /v1/score: one text with each of several, or texts in pairs."""

    text_1: Texts
    text_2: Texts

    @model_validator(mode="after")
    def _check_pairs(self) -> "ScoreRequest":
        if len(self.text_1) not in (1, len(self.text_2)):
            raise invalid_value("'text_1' must be one text, or as many as 'text_2'.", "text_1")
        return self
