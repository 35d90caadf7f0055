"""OpenAI's `prediction`: text that the reply probably resembles."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from server.schemas.validation import RequestModel, text_or_list


class PredictedPart(RequestModel):
    """One part of a predicted text."""

    type: Literal["text"]
    text: str


def _as_parts(value: object) -> object:
    return text_or_list(value, lambda text: {"type": "text", "text": text})


Parts = list[PredictedPart]


class Prediction(RequestModel):
    """A predicted text, whole or in parts."""

    type: Literal["content"]
    content: Annotated[Parts, BeforeValidator(_as_parts, json_schema_input_type=str | Parts)]

    @property
    def text(self) -> str:
        """The texts of the parts, joined."""
        return "".join(part.text for part in self.content)
