"""What form an answer must have: `response_format`, and `structured_outputs`."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from server.errors import ApiError, invalid_value
from server.schemas.validation import RequestModel
from server.strict_json import parse_object

MAX_GRAMMAR_CHARS = 1 << 16  # of a schema written as JSON, of a regular expression, a grammar, or all choices together
MAX_CHOICES = 1000


def _parsed_schema(value: object) -> object:
    """A schema may be sent as the text of a JSON object."""
    if not isinstance(value, str):
        return value
    if not value.strip().startswith("{"):
        raise PydanticCustomError("dict_type", "")
    try:
        return parse_object(value.encode("utf-8", errors="surrogatepass"))
    except ApiError:
        raise PydanticCustomError("dict_type", "") from None


Schema = Annotated[dict[str, JsonValue], BeforeValidator(_parsed_schema)]
Source = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
OneOf = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


class _Exact(RequestModel):
    """A misspelled field would be a constraint that is silently dropped, so each field must be known."""

    model_config = ConfigDict(extra="forbid")


class JsonSchemaFormat(_Exact):
    """A schema as OpenAI wraps it. It is followed strictly, whatever `strict` says."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_.-]*$")] = ""
    description: str | None = None
    json_schema: dict[str, JsonValue] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_Exact):
    """Plain text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_due(self) -> "ResponseFormat":
        param = "response_format.json_schema"
        if self.type == "json_schema" and self.json_schema is None:
            raise ApiError(f"'{param}' is required.", param=param, code="missing_required_parameter")
        if self.type != "json_schema" and self.json_schema is not None:
            raise invalid_value(f"'{param}' goes with the type 'json_schema' only.", param)
        return self


class StructuredOutputs(_Exact):
    """One of: a JSON schema, a regular expression, a list of texts, a grammar in Lark's notation."""

    json_schema: Schema | None = Field(default=None, alias="json")
    regex: Source | None = None
    choice: Annotated[list[OneOf], Field(min_length=1, max_length=MAX_CHOICES)] | None = None
    grammar: Source | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "StructuredOutputs":
        given = [one for one in (self.json_schema, self.regex, self.choice, self.grammar) if one is not None]
        if len(given) != 1:
            message = "Give exactly one of 'json', 'regex', 'choice' and 'grammar'."
            raise invalid_value(message, "structured_outputs")
        return self
