"""Required formats of the output: `response_format` and `structured_outputs`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
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
# In llama.cpp an empty schema or grammar is no constraint.
SchemaOrNone = Annotated[Schema, AfterValidator(lambda schema: schema or None)]
SourceOrNone = Annotated[str, Field(max_length=MAX_GRAMMAR_CHARS), AfterValidator(lambda source: source or None)]
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
    bare_schema: dict[str, JsonValue] | None = Field(default=None, alias="schema")  # llama.cpp's and Together's form

    @model_validator(mode="after")
    def _check_schema(self) -> "ResponseFormat":
        param = "response_format.json_schema"
        schemas = [schema for schema in (self.json_schema, self.bare_schema) if schema is not None]
        if self.type == "json_schema" and not schemas:
            raise ApiError(f"'{param}' is required.", param=param, code="missing_required_parameter")
        if self.type != "json_schema" and self.json_schema is not None:
            raise invalid_value(f"'{param}' requires the type 'json_schema'.", param)
        if len(schemas) > 1 or (self.type == "text" and schemas):
            reason = "requires a type other than 'text', and excludes 'json_schema'."
            raise invalid_value(f"'response_format.schema' {reason}", "response_format.schema")
        return self

    @property
    def schema_of_output(self) -> dict[str, JsonValue] | None:
        """The schema, in whichever form it was sent."""
        return self.bare_schema if self.json_schema is None else self.json_schema.json_schema


Texts = Annotated[list[ChoiceText], Field(min_length=1, max_length=MAX_CHOICE_TEXTS)]


class StructuredOutputs(_StrictModel):
    """Exactly one of: a JSON schema, a regular expression, a list of texts, or a grammar (Lark's notation or GBNF)."""

    json_schema: Schema | None = Field(default=None, alias="json")
    regex: Source | None = None
    choice: Texts | None = None
    grammar: Source | None = None

    @model_validator(mode="after")
    def _check_exactly_one(self) -> "StructuredOutputs":
        present = [one for one in (self.json_schema, self.regex, self.choice, self.grammar) if one is not None]
        if len(present) != 1:
            message = "Send exactly one of 'json', 'regex', 'choice' and 'grammar'."
            raise invalid_value(message, "structured_outputs")
        return self

    @property
    def kind(self) -> str:
        """The name of the member that was sent."""
        members = {"json": self.json_schema, "regex": self.regex, "choice": self.choice, "grammar": self.grammar}
        return next(name for name, value in members.items() if value is not None)


# Other servers' names for members of `structured_outputs`.
ALIASES = {
    "guided_json": "json",  # vLLM before 0.12
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",  # llama.cpp, SGLang
    "grammar": "grammar",  # llama.cpp
    "regex": "regex",  # SGLang
    "ebnf": "grammar",
}


class StructuredFields(RequestModel):
    """`structured_outputs`, and its members under other servers' names."""

    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: Source | None = None
    guided_choice: Texts | None = None
    guided_grammar: Source | None = None
    json_schema: SchemaOrNone | None = None
    grammar: SourceOrNone | None = None
    regex: Source | None = None
    ebnf: Source | None = None

    @model_validator(mode="after")
    def _check_one_name(self) -> "StructuredFields":
        given = [name for name in ("structured_outputs", *ALIASES) if getattr(self, name) is not None]
        if len(given) > 1:
            raise invalid_value(f"Send only one of '{given[0]}' and '{given[1]}'.", given[1])
        return self

    @property
    def outputs(self) -> tuple[StructuredOutputs | None, str]:
        """The constraint, and the field's name that it was sent under: "structured_outputs" or one of ALIASES."""
        for name, member in ALIASES.items():
            value = getattr(self, name)
            if value is not None:
                return StructuredOutputs.model_validate({member: value}), name
        return self.structured_outputs, "structured_outputs"
