"""Flags of the settings: what help texts and docs/configuration.md show of each field of `Settings`."""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from server.settings.settings import GROUPS, DefaultText, Settings, flag_name
from server.settings.value_types import KeyFile

METAVARS = {int: "N", float: "SECONDS", str: "TEXT", Path: "FILE", KeyFile: "FILE"}
METAVARS_OF_SUFFIXES = {
    "bytes": "SIZE",
    "days": "DAYS",
    "dir": "DIR",
    "theta": "NUMBER",
    "lora": "NAME=DIR",
}  # a SIZE takes units, as 1GiB
METAVARS_OF_NAMES = {"expert_memory": "SIZE|auto", "override_generation_config": "JSON"}


@dataclass(frozen=True)
class SettingFlag:
    """One setting as a flag."""

    name: str  # of the field
    flag: str  # --max-model-len
    group: str
    description: str
    default: str  # as shown; empty for a switch that is off, and for a setting without a default
    metavar: str  # "N", "auto|cpu|cuda"; empty for a switch
    is_repeatable: bool

    @property
    def is_switch(self) -> bool:
        return not self.metavar

    @property
    def help_text(self) -> str:
        """Description for `--help`, with the default in brackets."""
        repeated = " May be repeated." if self.is_repeatable else ""
        default = f" [default: {self.default}]" if self.default else ""
        return f"{self.description}{repeated}{default}"


def setting_flags() -> Iterator[SettingFlag]:
    """Yield the flag of every setting, in the order of the fields."""
    group = ""
    for name, field in Settings.model_fields.items():
        group = GROUPS.get(name, group)
        kinds = list(_plain_types(field.annotation))
        of_suffix = None if bool in kinds else METAVARS_OF_SUFFIXES.get(name.rpartition("_")[2])
        metavar = METAVARS_OF_NAMES.get(name) or of_suffix or "|".join(_metavars(kinds))
        description = field.description or ""
        yield SettingFlag(name, flag_name(name), group, description, _default(field), metavar, tuple in kinds)


def _plain_types(annotation: Any) -> Iterator[Any]:
    """Yield the members of a union without their constraints: Annotated[int, ...] | None gives int and NoneType."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _plain_types(annotation.__origin__)
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _plain_types(member)
    else:
        yield annotation if origin is None or origin is Literal else origin


def _metavars(kinds: list[Any]) -> Iterator[str]:
    """Yield the accepted words of a Literal, or a placeholder for another type; nothing for a switch."""
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            yield from typing.get_args(kind)
        elif kind in (tuple, *METAVARS):
            yield "TEXT" if kind is tuple else METAVARS[kind]


def _default(field: FieldInfo) -> str:
    for mark in field.metadata:
        if isinstance(mark, DefaultText):
            return mark.text
    if field.default is False or field.default in (None, (), "", {}):  # 0 == False, but it is a default
        return ""
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
