"""Conversations made to fit Mistral's formats: a system message in front or none, then user, assistant, user, ...

The repairs follow mistral-common, which joins neighbours, moves the system's texts and lets an empty turn of the user
stand before an answer that comes first. Knows neither templates nor tokens.
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
    """The conversation with its roles in order, and the names of the repairs that it took: none where it was valid.

    `system_place`: where the template in use takes the system's text. No text is lost, and the texts of user and
    assistant keep their order. Repairing what is repaired changes nothing.
    """
    repairs: dict[str, Callable[[list[Turn]], list[Turn]]] = {
        "mapped-tool-ids": _with_short_ids,
        "system-as-user": _closing_system_as_user,
        "moved-system": _system_first,
        "joined-turns": _joined,
        "added-user": _begun_by_user,
        "folded-system": partial(_system_folded, place=system_place),
    }
    turns = [Turn(message.template_role, message.text, message.calls, message.call_id) for message in messages]
    names: list[str] = []
    for name, repair in repairs.items():
        before, turns = turns, repair(turns)
        if turns != before:
            names.append(name)
    return turns, names


def roles_out_of_order(repairs: Sequence[str]) -> ApiError:
    """What a conversation is told that needs repairs where none are made."""
    message = (
        "After one system message or none, roles must alternate: user, assistant, user, ...; "
        f"this server repairs no conversation, and this one would need: {', '.join(repairs)}."
    )
    return invalid_value(message, "messages")


def _with_short_ids(turns: list[Turn]) -> list[Turn]:
    """Ids of calls that another server made up, as the 9 letters and digits that Mistral's models know."""
    return [
        replace(
            turn,
            calls=tuple(Call(mistral_id(call.id), call.name, call.arguments) for call in turn.calls),
            call_id=mistral_id(turn.call_id) if turn.call_id else "",
        )
        for turn in turns
    ]


def _closing_system_as_user(turns: list[Turn]) -> list[Turn]:
    """A system text after the last answer is what is to be answered: [u, a, s] is [u, a, u]."""
    start = len(turns) - sum(1 for _ in takewhile(_is_system, reversed(turns)))
    if start == 0 or turns[start - 1].template_role != "assistant":
        return turns
    return [*turns[:start], *(Turn("user", turn.text) for turn in turns[start:])]


def _system_first(turns: list[Turn]) -> list[Turn]:
    """[u, s, a, s, u] is [s, s, u, a, u]."""
    return sorted(turns, key=lambda turn: not _is_system(turn))


def _joined(turns: list[Turn]) -> list[Turn]:
    """[s, s, u, u, a] is [s, u, a], with a blank line between the texts that are not empty. Results of tools stay."""
    joined: list[Turn] = []
    for role, run in groupby(turns, key=attrgetter("template_role")):
        members = list(run)
        if role == "tool":
            joined += members
        else:
            text = BLANK_LINE.join(turn.text for turn in members if turn.text)
            joined.append(Turn(role, text, tuple(call for turn in members for call in turn.calls)))
    return joined


def _begun_by_user(turns: list[Turn]) -> list[Turn]:
    """[s, a, u] is [s, u, a, u] with an empty text for the user, [s] is [s, u]."""
    start = 1 if turns and _is_system(turns[0]) else 0
    if turns[start:] and turns[start].template_role == "user":
        return turns
    return [*turns[:start], Turn("user", ""), *turns[start:]]


def _system_folded(turns: list[Turn], place: SystemPlace) -> list[Turn]:
    """[s, u, a, u] is [u, a, u], the system's text in front of the first or the last user's, a blank line between."""
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
