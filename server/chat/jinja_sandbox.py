"""Jinja environment for a checkpoint's chat template: isolated from Python and bounded in work.

jinja's own sandbox blocks attributes and objects that a template must not reach. It does not limit work: nested loops
over range(100000), texts that double with each loop turn, 'x'.ljust(10**9). Here each loop turn and call counts
against a budget, and so does each element and text that an operation reads: comparisons, tests, slices, filters,
concatenations, output. An operation that could build too long a text is refused before it runs.
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
    MAX_STEPS,
    STEPS_PER_CALL,
    RenderBudget,
    TemplateBudgetExceeded,
    bounded_join,
    check_chars,
    check_repetition,
    result_steps,
    shallow_steps,
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
# Filters whose cost does not depend on what their first argument contains.
CONSTANT_TIME = frozenset({"count", "d", "default", "first", "last", "length"})
# These take longer for each character than other filters.
SLOW = frozenset({"float", "format", "int", "striptags", "title", "urlencode", "wordcount", "wordwrap"})
SORTING = frozenset(
    {"dictsort", "groupby", "max", "min", "sort", "sum", "unique"}
)  # compare or add elements several times
GLOBALS = frozenset({"range", "dict", "namespace", "joiner", "cycler"})

_LONG_WIDTH = re.compile(r"[0-9]{4}|\*")  # in a format string; a star takes the width from an argument
MAX_JSON_INDENT = 16  # also of a separator's characters

# Names that no template can write, so that no template can replace their values.
_BUDGET = "budget of this rendering"
_COUNTED = "counted loop"
_CONCAT = "bounded concatenation"
_CHARGED = "charged value"  # with all that is inside
_READ = "charged elements"  # without what is inside them
_STEPS = "charged steps"


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

    def render(self, variables: dict[str, object], max_steps: int = MAX_STEPS) -> str:
        """Render a text. `max_steps`: as render_budget counts them.

        Raises TemplateRefusal, TemplateBudgetExceeded, or jinja2.TemplateError for other failures.
        """
        try:
            return bounded_join(self._template.generate({**variables, _BUDGET: RenderBudget(max_steps)}))
        except RecursionError:
            raise TemplateBudgetExceeded("it calls itself too deeply") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, NameError) as error:
            raise TemplateError(type(error).__name__) from error


_LOOK_UPS = (nodes.Getattr, nodes.Getitem, nodes.Filter, nodes.Call, nodes.Test)


class _LimitInserter(NodeTransformer):
    """Syntax tree transformer that adds charges to the operations that jinja does not let an environment intercept:
    loops, macros, `~`, comparisons, tests, slices, keys of dicts and output."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED)
        _charge_body(node)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        _charge_body(node)
        return node

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        _charge_body(node)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node.nodes[0], _CONCAT, node.nodes[1:], [], None, None)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, _CHARGED)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _CHARGED)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.args:  # a test without arguments looks at the type or takes constant time; `is defined` needs the name
            node.node = _filtered(node.node, _CHARGED)
            node.args = [_filtered(argument, _CHARGED) for argument in node.args]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, _READ)
        elif not isinstance(node.arg, nodes.Const):
            node.arg = _filtered(node.arg, _CHARGED)  # a tuple may be long to hash
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _filtered(node.key, _CHARGED)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [
            child if isinstance(child, nodes.TemplateData | nodes.Const) else _filtered(child, _CHARGED)
            for child in node.nodes
        ]
        return node


def _charge_body(node: nodes.For | nodes.Macro | nodes.CallBlock) -> None:
    """Charge each run of a body for its length: a step for each look-up, filter and call, one for 16 other nodes."""
    body = [inside for child in node.body for inside in (child, *child.find_all(nodes.Node))]
    num_steps = sum(isinstance(inside, _LOOK_UPS) for inside in body) + len(body) // 16
    node.body.insert(0, nodes.ExprStmt(_filtered(nodes.Const(num_steps), _STEPS)))


def _filtered(node: Any, name: str) -> nodes.Filter:
    """Wrap an expression in one of this module's own filters."""
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _GenerationTag(Extension):
    """The tag {% generation %}, by which Hugging Face marks texts for training: writes its body."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja environment with Hugging Face's settings for chat templates, and with limits."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
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
        self.filters |= {"tojson": _tojson, "join": _join_filter}
        self.filters |= {_COUNTED: _counted, _CONCAT: _concat, _CHARGED: _charged, _READ: _read, _STEPS: _charge}
        self.globals = {name: self.globals[name] for name in GLOBALS}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _LimitInserter().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Count a call that the template makes, check its arguments and run it."""
        budget: RenderBudget = context[_BUDGET]
        budget.charge(STEPS_PER_CALL)
        for argument in (*args, *kwargs.values()):
            budget.charge_value(argument)
        method = getattr(function, "__wrapped__", function)  # jinja wraps str.format in a function
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            budget.charge(len(owner) // 8)  # splitting makes many small texts
            budget.check_product(owner, *args, *kwargs.values())
            if function.__name__ in {"format", "format_map"}:
                _check_widths(owner)
            if function.__name__ == "join" and len(args) == 1:
                return _join(budget, args[0], owner)
            result = super().call(context, function, *args, **kwargs)
            budget.charge(shallow_steps(result))
            return result
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Run an intercepted operator, unless its result could be a huge text or number."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise TemplateBudgetExceeded("powers and formatting with % are not supported")
        if operator == "*":
            check_repetition(left, right)
        elif operator == "+" and isinstance(left, str | list) and isinstance(right, str | list):
            check_chars(len(left) + len(right))
        context[_BUDGET].charge(STEPS_PER_CALL + result_steps(operator, left, right))
        return super().call_binop(context, operator, left, right)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter of jinja's so that it is charged for its arguments and its result.

    A filter that jinja makes lazy returns a list: its work is then charged where it is done.
    """
    passed = getattr(function, "jinja_pass_arg", None)

    @functools.wraps(function)
    def bounded(context: Context, *args: Any, **kwargs: Any) -> Any:
        budget: RenderBudget = context[_BUDGET]
        budget.charge()
        if name not in CONSTANT_TIME:
            budget.check_product(*args, *kwargs.values())
            for argument in (*args, *kwargs.values()):
                budget.charge_value(argument)
        if name == "format":
            _check_widths(str(args[0]))
        if name in _PARTS and any(isinstance(part, int) and part > MAX_PARTS for part in (*args, *kwargs.values())):
            raise TemplateBudgetExceeded(f"its filter {name} makes more than {MAX_PARTS} parts")
        if name in SLOW and args:
            budget.charge(_size_of_text(args[0]) // 4)
        if name in SORTING and args:
            budget.charge_value([args[0]] * shallow_steps(args[0]).bit_length())
            if name == "sum" and not isinstance(kwargs.get("start", 0), int | float):
                raise TemplateBudgetExceeded("'sum' of anything but numbers is not supported")
        result = function(*_passed_argument(passed, context), *args, **kwargs)
        if isinstance(result, Iterator):
            result = list(_CountedItems(budget, result))
        budget.charge(sum(map(shallow_steps, result)) if name in _PARTS else shallow_steps(result))
        return result

    return pass_context(bounded)


def _size_of_text(value: object) -> int:
    return len(value) if isinstance(value, str) else 0


def _passed_argument(passed: Any, context: Context) -> tuple[object, ...]:
    """Return what jinja would pass to a filter first: its context, a part of it, or nothing."""
    if passed is None:
        return ()
    return ({"context": context, "eval_context": context.eval_ctx}.get(passed.name, context.environment),)


@pass_context
def _counted(context: Context, iterable: Iterable[object]) -> Iterable[object]:
    """Wrap the items of a loop so that each turn counts as a step. An undefined value behaves as jinja defines it."""
    budget: RenderBudget = context[_BUDGET]
    if isinstance(iterable, list | tuple | dict | str | range):
        return _CountedItems(budget, iterable)
    return _CountedItems(budget, list(_CountedItems(budget, iterable)))


@pass_context
def _charged(context: Context, value: object) -> object:
    if not isinstance(value, Undefined):
        context[_BUDGET].charge_value(value)
    return value


@pass_context
def _charge(context: Context, num_steps: int) -> None:
    context[_BUDGET].charge(num_steps)


@pass_context
def _read(context: Context, value: object) -> object:
    context[_BUDGET].charge(shallow_steps(value))
    return value


class _CountedItems:
    """Items of a loop that count each turn; has a length, which jinja's loop.last and loop.length need."""

    def __init__(self, budget: RenderBudget, items: Any) -> None:
        self._budget = budget
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[object]:
        for item in self._items:
            self._budget.charge()
            yield item


@pass_context
def _concat(context: Context, *values: object) -> str:
    budget: RenderBudget = context[_BUDGET]
    for value in values:
        budget.charge_value(value)
    return bounded_join(str(value) for value in values)


@pass_context
def _join_filter(context: Context, values: Iterable[object], separator: str = "") -> str:
    return _join(context[_BUDGET], values, separator)


def _join(budget: RenderBudget, values: Iterable[object], separator: str = "") -> str:
    def pieces() -> Iterator[str]:
        for index, value in enumerate(_CountedItems(budget, values)):
            if index:
                budget.charge_value(separator)
                yield separator
            budget.charge_value(value)
            yield str(value)

    return bounded_join(pieces())


@pass_context
def _tojson(
    context: Context,
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON like Hugging Face's filter: no HTML escapes, and by default non-ASCII characters unchanged."""
    if isinstance(value, Undefined) or max(indent or 0, *map(len, separators or ("", ""))) > MAX_JSON_INDENT:
        raise TemplateError("tojson of an undefined value, or with a wide indent or separator")
    context[_BUDGET].charge_value(value)
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
