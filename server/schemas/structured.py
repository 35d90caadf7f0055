"""Required formats of the output: `response_format` and `structured_outputs`."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from server.errors import ApiError, invalid_value
from server.schemas.validation import RequestModel
from server.strict_json import parse_object

MAX_GRAMMAR_CHARS = 1 << 16  # of a schema as JSON, a regular expression, a grammar, or all texts of `choice`
MAX_CHOICE_TEXTS = 1000


def _parsed_schema(value: object) -> object:
    """Parse a schema that was sent as the text of a JSON object."""
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
ChoiceText = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


class _StrictModel(RequestModel):
    """Rejects unknown fields: a misspelled one would be a constraint that is silently dropped."""

    model_config = ConfigDict(extra="forbid")


class JsonSchemaFormat(_StrictModel):
    """A JSON schema in OpenAI's wrapper. The output follows it strictly, whatever `strict` is."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_.-]*$")] = ""
    description: str | None = None
    json_schema: dict[str, JsonValue] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(_StrictModel):
    """Plain text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        param = "response_format.json_schema"
        if self.type == "json_schema" and self.json_schema is None:
            raise ApiError(f"'{param}' is required.", param=param, code="missing_required_parameter")
        if self.type != "json_schema" and self.json_schema is not None:
            raise invalid_value(f"'{param}' requires the type 'json_schema'.", param)
        return self


class StructuredOutputs(_StrictModel):
    """Exactly one of: a JSON schema, a regular expression, a list of texts, or a grammar in Lark's notation."""

    json_schema: Schema | None = Field(default=None, alias="json")
    regex: Source | None = None
    choice: Annotated[list[ChoiceText], Field(min_length=1, max_length=MAX_CHOICE_TEXTS)] | None = None
    grammar: Source | None = None

    @model_validator(mode="after")
    def _check_exactly_one(self) -> "StructuredOutputs":
        present = [one for one in (self.json_schema, self.regex, self.choice, self.grammar) if one is not None]
        if len(present) != 1:
            message = "Send exactly one of 'json', 'regex', 'choice' and 'grammar'."
            raise invalid_value(message, "structured_outputs")
        return self
