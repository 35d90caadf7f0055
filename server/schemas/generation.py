"""Common fields of completions and chat, each with its range."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from server.errors import ApiError, invalid_value
from server.schemas.constraint_spellings import Kind, fields_of_chat, refused_spellings
from server.schemas.structured import ALIASES, ResponseFormat, StructuredFields
from server.schemas.validation import RequestModel, text_or_list
from server.strict_json import INT64_MAX, INT64_MIN, JsonValue

MAX_CHOICES = 128
MAX_STOP_STRINGS = 32
MAX_STOP_CHARS = 256
UNBOUNDED = -1  # as llama.cpp has it, of max_tokens: as many as fit; of truncate_prompt_tokens: as many as leave room
MAX_STOP_TOKEN_IDS = 256
MAX_BAD_WORDS = 64
MAX_SECONDS = 365 * 24 * 3600.0
MAX_LOGPROBS = 20
MAX_NAME_CHARS = 512
RANDOM_SEED = -1  # as vLLM, llama.cpp and Ollama have it: as without a seed

CONSTRAINTS = ("response_format", "structured_outputs", *ALIASES)
OTHER_SPELLINGS = refused_spellings(*CONSTRAINTS)

# Fields of other servers that this one does not support, with the values that have no effect and are accepted.
UNSUPPORTED: Mapping[str, tuple[JsonValue, ...]] = {
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "multi_modal_data": ({},),
    "prompt_embeds": (),
    "use_beam_search": (False,),
    **OTHER_SPELLINGS,
}

# Fields that routers for several servers (SGLang's, vLLM's) add to every body, with the values that ask for nothing.
HARMLESS: Mapping[str, tuple[JsonValue, ...]] = {
    "include_reasoning": (False, True),  # a Mixtral has no reasoning to include or to separate
    "no_stop_trim": (False,),
    "return_hidden_states": (False,),
    "separate_reasoning": (False, True),
    "stream_reasoning": (False, True),
}

HINTS: Mapping[str, str] = {
    "logit_bias": 'It is an object whose keys are token ids as text, such as {"262": -100}; POST /tokenize gives ids.',
    "stop": "Token ids belong into 'stop_token_ids'.",
    "use_beam_search": "Tokens are sampled; 'temperature': 0 takes the likeliest one.",
}

CONSTRAINT_FIELDS: Mapping[Kind, str] = {
    "format": "response_format",
    "limit": "max_tokens",
    "minimum": "min_tokens",
    "stop": "stop",
    "tokens": "logit_bias",
    "tools": "tool_choice",
    "time": "timeout_s",
    "adapter": "model",
}


def _one_or_many(value: object) -> object:
    return text_or_list(value, str)


def _none_if_unbounded(value: object) -> object:
    return None if type(value) is int and value == UNBOUNDED else value


def limit_or_unbounded(lowest: int) -> BeforeValidator:
    """Return the validator of a limit on generated tokens, at least `lowest`: UNBOUNDED becomes None."""
    sent = Annotated[int, Field(ge=lowest)] | Literal[-1] | None
    return BeforeValidator(_none_if_unbounded, json_schema_input_type=sent)


def _distinct(ids: list[int]) -> list[int]:
    """Return the ids sorted and without duplicates, so that each choice carries as few as possible."""
    return sorted(set(ids))


Name = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
NonemptyName = Annotated[Name, Field(json_schema_extra={"minLength": 1})]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]
Seconds = Annotated[float, Field(gt=0.0, le=MAX_SECONDS)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
DecimalId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
Seed = Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)]


class StreamOptions(RequestModel):
    """Additional content of a stream."""

    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = {"include_obfuscation": (False,)}  # OpenAI's padding

    include_usage: bool | None = None
    continuous_usage_stats: bool = False


class GenerationRequest(StructuredFields):
    """Common fields of completions and chat. None: absent; the default of the checkpoint or of the server applies."""

    unsupported: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = UNSUPPORTED
    harmless: ClassVar[Mapping[str, tuple[JsonValue, ...]]] = HARMLESS
    instead: ClassVar[Mapping[str, str]] = fields_of_chat(OTHER_SPELLINGS)
    hints: ClassVar[Mapping[str, str]] = HINTS
    constraint_fields: ClassVar[Mapping[Kind, str] | None] = CONSTRAINT_FIELDS
    prompt_field: ClassVar[str]  # the name of the field that has the prompt

    model: NonemptyName | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Annotated[int, Field(ge=0)] | None, limit_or_unbounded(0)] = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=2.0)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0.0, le=2.0)] | None = None  # llama.cpp's name for the same
    stop: Annotated[StopStrings, BeforeValidator(_one_or_many, json_schema_input_type=StopString | StopStrings)] = (
        Field(default_factory=list)
    )
    stop_token_ids: list[int] = Field(default_factory=list, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: Seed | None = None
    random_seed: Seed | None = None  # Mistral's name for the same
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    logit_bias: dict[DecimalId, Bias] = Field(default_factory=dict)
    allowed_token_ids: Annotated[list[int], Field(min_length=1), AfterValidator(_distinct)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    bad_words: Annotated[list[StopString], Field(max_length=MAX_BAD_WORDS)] = Field(default_factory=list)
    skip_special_tokens: bool = True
    return_token_ids: bool = False
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | Literal[-1] | None = None
    truncation_side: Literal["left", "right"] | None = None
    timeout_s: Seconds | None = None
    queue_timeout_s: Seconds | None = None
    experts_per_token: Annotated[int, Field(ge=1)] | None = None
    expert_mask: list[list[bool]] | None = None
    expert_usage: bool = False
    expert_routing: bool = False
    gate_logits: bool = False
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] = 0
    cache_salt: Name = ""
    user: Name | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "GenerationRequest":
        if self.model == "":
            raise ApiError("'model' must not be empty.", param="model", code="empty_string")
        if self.stream_options is not None and not self.stream:
            raise invalid_value("'stream_options' requires 'stream': true.", "stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise invalid_value("'prompt_logprobs' cannot be streamed.", "prompt_logprobs")
        if None not in (penalties := {self.repetition_penalty, self.repeat_penalty}) and len(penalties) > 1:
            raise invalid_value("Send only one of 'repetition_penalty' and 'repeat_penalty'.", "repeat_penalty")
        if None not in (seeds := {self.seed, self.random_seed}) and len(seeds) > 1:
            raise invalid_value("Send only one of 'seed' and 'random_seed'.", "random_seed")
        self._check_lengths()
        return self

    def _check_lengths(self) -> None:
        limit = self.completion_limit
        if limit is not None and self.min_tokens > limit:
            raise invalid_value("'min_tokens' must not exceed the limit on generated tokens.", "min_tokens")

    @property
    def completion_limit(self) -> int | None:
        """The largest number of tokens to generate. None: as many as fit after the prompt."""
        return self.max_tokens

    @property
    def penalty_of_repetition(self) -> float | None:
        """`repetition_penalty`, under whichever name it was sent."""
        return self.repeat_penalty if self.repetition_penalty is None else self.repetition_penalty

    @property
    def chosen_seed(self) -> int | None:
        """The seed, under whichever name it was sent; None: the server draws one."""
        seed = self.random_seed if self.seed is None else self.seed
        return None if seed == RANDOM_SEED else seed

    @property
    def limit_field(self) -> str:
        """The name of the field that `completion_limit` comes from."""
        return "max_tokens"

    @property
    def has_default_limit(self) -> bool:
        """True if `completion_limit` shrinks to the room after the prompt, as an endpoint's default does."""
        return False

    @property
    @abstractmethod
    def prompt_texts(self) -> list[str]:
        """The texts that the prompt is made of."""

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """None: no logprobs. k: logprobs of each token and of the k most likely tokens at its position."""

    @property
    def has_prompt_logprobs(self) -> bool:
        """True if `logprobs` of the reply include those of the echoed prompt."""
        return False

    @property
    def has_routing(self) -> bool:
        """True if the reply has the expert ids of each token."""
        return self.expert_routing or self.gate_logits

    @property
    def has_prompt_routing(self) -> bool:
        """True if expert ids and gate logits of the reply include those of the echoed prompt."""
        return False

    @property
    def scores_prompt(self) -> bool:
        """True if the reply has logprobs of the prompt's own tokens, in whichever field."""
        return self.has_prompt_logprobs or self.prompt_logprobs is not None

    @property
    def num_scores(self) -> int | None:
        """As `num_logprobs`, but over all fields of the reply that have logprobs."""
        wanted = [number for number in (self.num_logprobs, self.prompt_logprobs) if number is not None]
        return max(wanted, default=None)
