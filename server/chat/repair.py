"""Repair conversations to fit Mistral's formats: at most one system message, in front, then user, assistant, user, ...

The repairs follow mistral-common: it joins neighbours of the same role, moves system texts to the front, and puts an
empty user turn before an assistant turn that comes first. Independent of templates and tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, takewhile
from operator import attrgetter
from typing import Literal

from server.chat.turns import Call, Message, Turn, mistral_id
from server.errors import ApiError, invalid_value

BLANK_LINE = "\n\n"

SystemPlace = Literal["own_message", "first_user_turn", "last_user_turn"]


def repair_conversation(messages: Sequence[Message], system_place: SystemPlace) -> tuple[list[Turn], list[str]]:
    """Return the conversation with its roles in order, and the names of the repairs made; no names if it was valid.

    `system_place`: where the template expects the system text. No text is lost, and the texts of user and assistant
    keep their order. Repairing a repaired conversation changes nothing.
    """
    repairs: dict[str, Callable[[list[Turn]], list[Turn]]] = {
        "mapped-tool-ids": _map_call_ids,
        "system-as-user": _final_system_to_user,
        "moved-system": _move_system_first,
        "joined-turns": _merge_neighbours,
        "added-user": _add_first_user,
        "folded-system": partial(_fold_system, place=system_place),
    }
    turns = [Turn(message.template_role, message.text, message.calls, message.call_id) for message in messages]
    names: list[str] = []
    for name, repair in repairs.items():
        before, turns = turns, repair(turns)
        if turns != before:
            names.append(name)
    return turns, names


def roles_out_of_order(repairs: Sequence[str]) -> ApiError:
    """Build the error for a conversation that needs repairs, on a server that does not repair."""
    message = (
        "After at most one system message, roles must alternate: user, assistant, user, ..., and the arguments of "
        "tool calls must be JSON objects; this server does not repair conversations, and this one would need: "
        f"{', '.join(repairs)}."
    )
    return invalid_value(message, "messages")


def _map_call_ids(turns: list[Turn]) -> list[Turn]:
    """Map call ids of another server to the 9 letters and digits that Mistral's models expect."""
    return [_map_ids_of(turn) if turn.calls or turn.call_id else turn for turn in turns]


def _map_ids_of(turn: Turn) -> Turn:
    return replace(
        turn,
        calls=tuple(Call(mistral_id(call.id), call.name, call.arguments) for call in turn.calls),
        call_id=mistral_id(turn.call_id) if turn.call_id else "",
    )


def _final_system_to_user(turns: list[Turn]) -> list[Turn]:
    """Turn system messages after the last answer into user messages: [u, a, s] becomes [u, a, u]."""
    start = len(turns) - sum(1 for _ in takewhile(_is_system, reversed(turns)))
    if start == 0 or turns[start - 1].template_role != "assistant":
        return turns
    return [*turns[:start], *(Turn("user", turn.text) for turn in turns[start:])]


def _move_system_first(turns: list[Turn]) -> list[Turn]:
    """Move system messages to the front: [u, s, a, s, u] becomes [s, s, u, a, u]."""
    return sorted(turns, key=lambda turn: not _is_system(turn))


def _merge_neighbours(turns: list[Turn]) -> list[Turn]:
    """Merge neighbours of one role, except tool results: [s, s, u, u, a] becomes [s, u, a].

    A blank line separates the texts that are not empty.
    """
    merged: list[Turn] = []
    for role, run in groupby(turns, key=attrgetter("template_role")):
        members = list(run)
        if role == "tool" or len(members) == 1:
            merged += members
        else:
            text = BLANK_LINE.join(turn.text for turn in members if turn.text)
            merged.append(Turn(role, text, tuple(call for turn in members for call in turn.calls)))
    return merged


def _add_first_user(turns: list[Turn]) -> list[Turn]:
    """Add an empty user turn where the first one is missing: [s, a, u] becomes [s, u, a, u], [s] becomes [s, u]."""
    start = 1 if turns and _is_system(turns[0]) else 0
    if turns[start:] and turns[start].template_role == "user":
        return turns
    return [*turns[:start], Turn("user", ""), *turns[start:]]


def _fold_system(turns: list[Turn], place: SystemPlace) -> list[Turn]:
    """Put the system text into the first or last user turn, with a blank line: [s, u, a, u] becomes [u, a, u]."""
    if place == "own_message" or not _is_system(turns[0]):
        return turns
    system, *others = turns
    users = [index for index, turn in enumerate(others) if turn.template_role == "user"]
    index = users[0] if place == "first_user_turn" else users[-1]
    if system.text:
        others[index] = Turn("user", system.text + BLANK_LINE + others[index].text)
    return others


def _is_system(turn: Turn) -> bool:
    return turn.template_role == "system"
