"""Jinja environment for a checkpoint's chat template: isolated from Python and bounded in work.

jinja's own sandbox blocks attributes and objects that a template must not reach. It does not limit work: nested loops
over range(100000), texts that double with each loop turn, 'x'.ljust(10**9). Here each loop turn and each call counts
against a budget, and an operation that could build too long a text is refused before it runs.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Never

from jinja2 import TemplateError, Undefined, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from server.chat.render_budget import (
    RenderBudget,
    TemplateBudgetExceeded,
    bounded_join,
    check_chars,
    check_product,
    check_repetition,
)

FILTERS = frozenset(
    {"abs", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first"}
    | {"float", "forceescape", "format", "groupby", "indent", "int", "items", "last", "length", "list", "lower", "map"}
    | {"max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice"}
    | {"sort", "string", "striptags", "sum", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount"}
    | {"wordwrap", "xmlattr"}
)
MAX_PARTS = 10_000  # that a filter may be asked for by a number
_PARTS = frozenset({"batch", "slice"})
GLOBALS = frozenset({"range", "dict", "namespace", "joiner", "cycler"})

_LONG_WIDTH = re.compile(r"[0-9]{4}|\*")  # in a format string; a star takes the width from an argument
MAX_JSON_INDENT = 16  # also of a separator's characters

# Names that no template can write, so that no template can replace their values.
_BUDGET = "budget of this rendering"
_COUNTED = "counted loop"
_CONCAT = "bounded concatenation"


class TemplateRefusal(Exception):
    """Refusal of a conversation by the template itself (raise_exception), with the template's own message."""


class SandboxedTemplate:
    """One compiled template. Renderings share nothing; each has its own budget."""

    def __init__(self, source: str) -> None:
        """Compile the template. Raises jinja2.TemplateError or TemplateBudgetExceeded if it is unusable."""
        try:
            self._template = _Environment().from_string(source)
        except RecursionError:
            raise TemplateBudgetExceeded("it is nested too deeply") from None

    def render(self, variables: dict[str, object]) -> str:
        """Render a text. Raises TemplateRefusal, TemplateBudgetExceeded, or jinja2.TemplateError for other failures."""
        try:
            return bounded_join(self._template.generate({**variables, _BUDGET: RenderBudget()}))
        except RecursionError:
            raise TemplateBudgetExceeded("it calls itself too deeply") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise TemplateError(type(error).__name__) from error


class _LimitInserter(NodeTransformer):
    """Syntax tree transformer that adds a counter to each loop and a length check to each `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node.nodes[0], _CONCAT, node.nodes[1:], [], None, None)


class _GenerationTag(Extension):
    """The tag {% generation %}, by which Hugging Face marks texts for training: writes its body."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja environment with Hugging Face's settings for chat templates, and with limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(lambda pieces: bounded_join(pieces))  # joins the output of {% set %} blocks and macros

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            autoescape=False,
            cache_size=0,
        )
        self.filters = {name: _bounded_filter(name, self.filters[name]) for name in FILTERS}
        self.filters |= {"tojson": _tojson, "join": _join, _COUNTED: _counted, _CONCAT: _concat}
        self.globals = {name: self.globals[name] for name in GLOBALS}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _LimitInserter().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Count a call that the template makes, check its arguments and run it."""
        context[_BUDGET].step()
        method = getattr(function, "__wrapped__", function)  # jinja wraps str.format in a function
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            check_product(owner, *args, *kwargs.values())
            if function.__name__ in {"format", "format_map"}:
                _check_widths(owner)
            if function.__name__ == "join" and len(args) == 1:
                return _join(args[0], owner)
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Run an intercepted operator, unless its result could be a huge text or number."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise TemplateBudgetExceeded("powers and formatting with % are not supported")
        if operator == "*":
            check_repetition(left, right)
        elif operator == "+" and isinstance(left, str | list) and isinstance(right, str | list):
            check_chars(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps jinja's mark for filters that take a context or environment
    def bounded(*args: Any, **kwargs: Any) -> Any:
        check_product(*args, *kwargs.values())
        if name == "format":
            _check_widths(str(args[0]))
        if name in _PARTS and any(isinstance(part, int) and part > MAX_PARTS for part in (*args, *kwargs.values())):
            raise TemplateBudgetExceeded(f"its filter {name} makes more than {MAX_PARTS} parts")
        return function(*args, **kwargs)

    return bounded


@pass_context
def _counted(context: Context, iterable: Iterable[object]) -> Iterable[object]:
    """Wrap the items of a loop so that each turn counts as a step. An undefined value behaves as jinja defines it."""
    if isinstance(iterable, list | tuple | dict | str | range):
        return _CountedItems(context[_BUDGET], iterable)
    return _CountedItems(context[_BUDGET], list(iterable))


class _CountedItems:
    """Items of a loop that count each turn; has a length, which jinja's loop.last and loop.length need."""

    def __init__(self, budget: RenderBudget, items: Any) -> None:
        self._budget = budget
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[object]:
        for item in self._items:
            self._budget.step()
            yield item


def _concat(*values: object) -> str:
    return bounded_join(str(value) for value in values)


def _join(values: Iterable[object], separator: str = "") -> str:
    def pieces() -> Iterator[str]:
        for index, value in enumerate(values):
            if index:
                yield separator
            yield str(value)

    return bounded_join(pieces())


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON like Hugging Face's filter: no HTML escapes, and by default non-ASCII characters unchanged."""
    if isinstance(value, Undefined) or max(indent or 0, *map(len, separators or ("", ""))) > MAX_JSON_INDENT:
        raise TemplateError("tojson of an undefined value, or with a wide indent or separator")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    check_chars(len(text))
    return text


def _strftime_now(form: str) -> str:
    """Write the local time, as Hugging Face's function. A prompt with it changes, and finds no prefix in the cache."""
    _check_widths(form)
    return datetime.now().strftime(form)


def _check_widths(form: str) -> None:
    """Raise TemplateBudgetExceeded for a format string that could pad a text to 1,000 characters or more."""
    if _LONG_WIDTH.search(form):
        raise TemplateBudgetExceeded("it pads a text to 1,000 characters or more")


def _raise_exception(message: object) -> Never:
    raise TemplateRefusal(str(message)[:500])
