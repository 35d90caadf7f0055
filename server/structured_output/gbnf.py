"""Translate grammars in GBNF, llama.cpp's notation, to Lark's. vLLM's and SGLang's EBNF is the same notation."""

import re

from llguidance.gbnf_to_lark import gbnf_to_lark

from server.errors import invalid_value

_RULE = re.compile(r"^[ \t]*[A-Za-z_][A-Za-z0-9_-]*[ \t]*::=", re.MULTILINE)
_OPTIONS = "%llguidance {}\n"  # written by the translation; a grammar has its options once


def as_lark(grammar: str, param: str) -> str:
    """Return a grammar in Lark's notation; one with rules `name ::= ...` is translated.

    Raises ApiError 400, with the field's name `param`, for a grammar of such rules that is not GBNF.
    """
    if not _RULE.search(grammar):
        return grammar
    try:
        lark: str = gbnf_to_lark(grammar)
    except Exception:  # noqa: BLE001 (the library raises plain exceptions for unknown rules and for a missing one)
        message = (
            f"'{param}' is not a grammar in GBNF: rules are 'name ::= ...' with \"texts\", [a-z], names, ( ), |, * + ? "
            "and {m,n}; it begins at the rule 'root'. Lark's notation has rules 'name: ...' and begins at 'start'."
        )
        raise invalid_value(message, param) from None
    return lark.removeprefix(_OPTIONS)
