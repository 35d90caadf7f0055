"""`smoe explain`, from its flags to its exit code."""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.client_commands import KeyFlag, UrlFlag, client_of
from server.cli.colours import colours_of
from server.cli.errors import report_error
from server.cli.run.command import SETTINGS, serving
from server.cli.settings.options import given_settings, settings_command

if TYPE_CHECKING:
    from server.cli.explain.gates import Mask, ModelShape, RoutedText

EXAMPLE = "It was not in her power to"


def add_to(app: typer.Typer) -> None:
    """Register the command with `app`."""
    short = "Show which experts compute each token of a text."
    app.command("explain", cls=settings_command(*SETTINGS), short_help=short)(explain_command)


def explain_command(
    context: typer.Context,
    text: Annotated[
        str, typer.Argument(help="Text whose tokens are explained.", metavar="TEXT", show_default=True)
    ] = EXAMPLE,
    token: Annotated[
        int | None, typer.Option("--token", min=0, help="Show this token only, with its layers in full.", metavar="N")
    ] = None,
    experts_per_token: Annotated[
        list[int],
        typer.Option(
            "--experts-per-token",
            "-k",
            help="Experts per token. May be repeated. [default: 1, the model's own number and all]",
            metavar="K",
            show_default=False,
        ),
    ] = [],  # noqa: B006 (typer's way)
    off: Annotated[
        list[str],
        typer.Option(
            "--off", help="Expert to switch off. May be repeated.", metavar="LAYER:EXPERT", show_default=False
        ),
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    url: UrlFlag = None,
    api_key: KeyFlag = None,
) -> None:
    """Show which experts compute each token of TEXT, with gate logits and weights, for several numbers of experts.

    It asks a server: the one at --url, where MODEL may be a LoRA adapter, the one that runs here if it serves MODEL, or
    one of its own that it starts.

    \b
    smoe explain smoe-demo "It was not in her power to"
    smoe explain smoe-demo "It was not" --token 3 --off 2:5
    """
    from server.cli.client.api_client import ApiError
    from server.model_files.location import model_id

    model = given_settings(context).get("model")
    name = None if url is None or model is None else model_id(model)
    server: AbstractContextManager[tuple[str | None, str]]
    server = serving(given_settings(context)) if url is None else nullcontext((url, ""))
    try:
        with server as (address, _):
            lines = _explain(address, api_key, name, text, token, experts_per_token, off, as_json=as_json)
    except (ApiError, ValueError) as error:
        raise typer.Exit(report_error(error)) from None
    for line in lines:
        typer.echo(line)


def _explain(
    url: str | None,
    api_key: str | None,
    name: str | None,
    text: str,
    token: int | None,
    wanted: Sequence[int],
    off: Sequence[str],
    *,
    as_json: bool,
) -> list[str]:
    """Return the lines to print. Raises ApiError and ValueError."""
    from server.cli.explain import gates, report

    client = client_of(url, api_key)
    model = gates.read_shape(client, name)
    mask = gates.mask_without(off, model)
    numbers = gates.usable_numbers(wanted, model, mask)
    routed = [gates.read_gates(client, model, text, k, mask) for k in numbers]
    if as_json:
        return [report.as_json(model, routed, mask)]
    num_tokens = len(routed[0].tokens)
    if token is not None and token >= num_tokens:
        raise ValueError(f"--token {token}: the text has tokens 0 to {num_tokens - 1}")
    return _tables(model, routed, mask, token)


def _tables(model: "ModelShape", routed: "Sequence[RoutedText]", mask: "Mask | None", token: int | None) -> list[str]:
    """Return a table per token and one layer in full; or one token's table and all its layers in full."""
    from server.cli.explain import report

    colours = colours_of(sys.stdout)
    own = next((one for one in routed if one.experts_per_token == model.experts_per_token), routed[0])
    if token is not None:
        lines = report.token_table(routed, token, colours)
        for layer in range(model.num_layers):
            lines += ["", *report.worked_layer(own, token, layer, mask)]
        return lines
    lines = report.introduction(model, own)
    for index in range(len(own.tokens)):
        lines += ["", *report.token_table(routed, index, colours)]
    lines += ["", *report.worked_layer(own, len(own.tokens) - 1, model.num_layers - 1, mask)]
    return [*lines, "", "--token N shows every layer of one token in full; --json prints all numbers."]
