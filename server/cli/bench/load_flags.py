"""Flags of the load, which `smoe bench serve` and `smoe bench compare` share."""

from typing import Annotated

import typer

RequestsFlag = Annotated[int, typer.Option(min=1, help="Requests per run; at least 3 per client are made.")]
ApiFlag = Annotated[str, typer.Option(help="completions or chat.")]
PromptFlag = Annotated[str, typer.Option(help="Prompts: tokens (random ids) or text (random words).")]
PromptTokensFlag = Annotated[str, typer.Option(help="Prompt length, as 64, or a range, as 16,256.")]
OutputTokensFlag = Annotated[str, typer.Option(help="Tokens to generate, as 64, or a range, as 16,256.")]
VocabSizeFlag = Annotated[int, typer.Option(min=301, help="Vocabulary size: random token ids are smaller.")]
EndEarlyFlag = Annotated[
    bool,
    typer.Option("--no-ignore-eos", help="Let outputs end early. For servers that do not support ignore_eos."),
]
