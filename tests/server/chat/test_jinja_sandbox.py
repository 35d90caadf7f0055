"""server/chat/jinja_sandbox.py: no template escapes, runs without end or builds a huge text; ordinary ones work."""

import inspect

import pytest
from jinja2 import Environment, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

from server.chat.jinja_sandbox import SandboxedTemplate, TemplateRefusal
from server.chat.render_budget import INLINE_STEPS, TemplateBudgetExceeded

HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str) -> str:
    return SandboxedTemplate(source).render({"messages": HELLO})


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10000000000) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '%*d' | format(10000000000, 1) }}",
        "{{ strftime_now('%10000000000Y') }}",
        "{{ [1] | batch(10000000, 'x') | list }}",
        "{{ [1] | slice(10000000) | list }}",
        "{{ 'x' | center(10000000000) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ (['x' * 1000000] * 1000000) | join }}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=3) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(99) %}"
        "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    ],
    ids=lambda source: source[:40],
)
def test_a_template_without_an_end_or_with_a_huge_text_exceeds_its_budget(source: str) -> None:
    with pytest.raises(TemplateBudgetExceeded):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for",
        "{% for a in range(10 * 1000 * 1000 * 1000) %}{% endfor %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ [messages, 1e999] }}",
        "{{ messages | attr('append') }}",
        "{% include 'file' %}",
        "{{ messages | tojson(indent=99) }}",
        "{{ messages | tojson(separators=('x' * 99, ':')) }}",
        "{% generation %}",
    ],
    ids=lambda source: source[:40],
)
def test_a_template_that_escapes_or_fails_is_a_template_error(source: str) -> None:
    with pytest.raises(TemplateError):
        render(source)


def in_loop(expression: str) -> str:
    return "{% for a in range(100000) %}{% set x = " + expression + " %}{% endfor %}"


def doubled(value: str, use: str) -> str:
    """Use a value of 2^40 parts that takes 40 lists to write."""
    return (
        f"{{% set n = namespace(v={value}) %}}{{% for i in range(40) %}}{{% set n.v = [n.v, n.v] %}}{{% endfor %}}{use}"
    )


@pytest.mark.parametrize(
    "source",
    [
        in_loop("messages[0].content | upper"),
        in_loop("messages[0].content.replace('l', 'm')"),
        in_loop("messages[0].content.split(' ') | sort"),
        in_loop("messages[0].content[1:]"),
        in_loop("messages[0].content ~ 'x'"),
        in_loop("messages[0].content + 'x'"),
        in_loop("'zz' in messages[0].content"),
        in_loop("'zz' in range(100000)"),
        in_loop("'zz' is in(range(100000))"),
        in_loop("messages == [1]"),
        in_loop("messages | tojson"),
        in_loop("messages | join(',')"),
        in_loop("messages | map(attribute='content') | map('upper') | list"),
        in_loop("messages | selectattr('content', 'equalto', 'x') | list"),
        in_loop("range(1000) | sort"),
        in_loop("range(1000) | max"),
        in_loop("[0] * 1000"),
        in_loop("dict(messages[0])"),
        in_loop("('9' * 4000) | int"),
        in_loop("'{:999}'.format(1)"),
        in_loop("+".join(["1.5 * a"] * 50)),
        in_loop("[" + ",".join(["a"] * 2000) + "]"),
        "{% macro f(n) %}" + "{% set x = [n.y, n.y] %}" * 50 + "{% endmacro %}" + in_loop("f(a)"),
        "{% set x = [0] * 8000000 %}{% set y = [x] * 8000000 %}",
        "{{ ([[1]] * 2000) | sum(start=[]) }}",
        doubled("1", "{{ n.v }}"),
        doubled("1", "{{ n.v | tojson }}"),
        doubled("1", "{{ n.v == [n.v] }}"),
        doubled("1", "{{ 'x' ~ n.v }}"),
        doubled("1", "{{ [n.v] | join }}"),
        doubled("1", "{{ '{}'.format(n.v) }}"),
        "{% set n = namespace(v=(1,)) %}{% for i in range(40) %}{% set n.v = (n.v, n.v) %}{% endfor %}{{ {n.v: 1} }}",
        "{% set n = namespace(v=(1,)) %}{% for i in range(40) %}{% set n.v = (n.v, n.v) %}{% endfor %}{{ {}[n.v] }}",
    ],
    ids=lambda source: source.removeprefix(in_loop("").partition("x = ")[0])[:50],
)
def test_what_an_operation_reads_and_writes_is_charged(source: str) -> None:
    """Each of these has few loop turns and calls in 10,000 steps, and would take seconds to years."""
    messages = [{"role": "user", "content": "Hello world " * 100}] * 20
    with pytest.raises(TemplateBudgetExceeded):
        SandboxedTemplate(source).render({"messages": messages}, INLINE_STEPS)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(1000) %}" + "{% set x = n.v %}" * 50 + "{% endfor %}",
        "{% for a in range(1000) %}{% set x = [" + ",".join(["a"] * 500) + "] %}{% endfor %}",
        "{% macro f() %}" + "{% set x = n.v %}" * 50 + "{% endmacro %}{% for a in range(500) %}{{ f() }}{% endfor %}",
    ],
    ids=["look-ups", "literals", "macro"],
)
def test_a_long_body_is_charged_in_each_turn(source: str) -> None:
    """The turns and calls alone are within the limit."""
    with pytest.raises(TemplateBudgetExceeded):
        SandboxedTemplate(source).render({"n": {"v": 1}}, INLINE_STEPS)


def test_an_ordinary_conversation_takes_few_steps() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles') }}{% endif %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    roles = [{"role": ("user", "assistant")[i % 2], "content": "Hello world " * 20} for i in range(20)]
    text = SandboxedTemplate(source).render({"messages": roles, "bos_token": "<s>", "eos_token": "</s>"}, INLINE_STEPS)
    assert text.count("Hello world") == 400


def test_lazy_filters_are_lists_and_keep_their_results() -> None:
    source = "{{ messages | map(attribute='role') | list }}{{ messages | selectattr('role', 'equalto', 'x') | list }}"
    assert render(source) == "['user'][]"
    assert (
        render("{{ [3, 1, 2] | sort | reverse | first }}{{ [1, 1, 2] | unique | join('-') }}{{ [1, 2] | sum }}")
        == "31-23"
    )
    assert render("{{ missing is defined }}{{ missing | default('d') }}{{ messages[-1:] | length }}") == "Falsed1"


def test_a_templates_own_refusal_carries_its_message() -> None:
    with pytest.raises(TemplateRefusal, match="only haiku"):
        render("{{ raise_exception('only haiku') }}")


def test_loops_keep_their_loop_variable_break_and_recursion() -> None:
    source = (
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"
        "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ loop.last }}{% break %}{% endfor %}"
        "{% for x in [1, [2, 3]] recursive %}"
        "{% if x is iterable %}{{ loop(x) }}{% else %}{{ x }}{% endif %}{% endfor %}"
        "{% for x in missing %}no{% else %}none{% endfor %}{{ {'\u00e4': '<'} | tojson }}"
    )
    assert render(source) == 'a11True123none{"\u00e4": "<"}'


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages | tojson(ensure_ascii=true) }}{{ 'é' | tojson }}{{ 'é' | tojson(ensure_ascii=true) }}",
        "{{ {'b': 1, 'a': [2]} | tojson(sort_keys=true, separators=(',', ':')) }}{{ [1] | tojson(indent=4) }}",
        "a{% generation %}{% set x = 1 %}{{ x }}b{% endgeneration %}{{ x is defined }}",
        "{{ '%s and %5d' | format('a', 3) }}{{ '%(a)s' | format(a=1) }}",
        "{{ strftime_now('%%d') }}{{ strftime_now('%Y') | length }}",
        "{{ [1, 2, 3] | batch(2, 0) | list }}{{ 'a b' | wordcount }}{{ 'abcdef' | truncate(4, true) }}",
    ],
)
def test_a_template_renders_as_in_hugging_faces_environment(source: str) -> None:
    variables: dict[str, object] = {"messages": HELLO}
    assert SandboxedTemplate(source).render(variables) == _compile_jinja_template(source).render(**variables)


def test_renderings_share_no_budget() -> None:
    template = SandboxedTemplate("{% for a in range(90000) %}{% endfor %}done")
    for _ in range(7):
        assert template.render({}) == "done"


def test_jinja_still_has_the_private_parts_that_the_limits_are_built_on() -> None:
    """Contract with jinja: `_parse`, `concat`, `jinja_pass_arg` and the `__wrapped__` of a sandboxed str.format."""
    assert list(inspect.signature(Environment._parse).parameters) == ["self", "source", "name", "filename"]
    assert Environment.concat("ab") == "ab"
    environment = ImmutableSandboxedEnvironment()
    assert hasattr(environment.filters["map"], "jinja_pass_arg")
    formatted = environment.getattr("{}!", "format")
    assert formatted.__name__ == "format" and formatted.__wrapped__.__self__ == "{}!"

    class Traced(ImmutableSandboxedEnvironment):
        """Environment that records each use of the parts which the limits override."""

        intercepted_binops = frozenset({"+"})
        used: set[str] = set()  # noqa: RUF012 (of this class alone)

        @staticmethod
        def concat(pieces: object) -> str:
            Traced.used.add("concat")
            return Environment.concat(pieces)

        def _parse(self, *args: object) -> object:
            Traced.used.add("_parse")
            return super()._parse(*args)

        def call(self, *args: object, **kwargs: object) -> object:
            Traced.used.add("call")
            return super().call(*args, **kwargs)

        def call_binop(self, *args: object) -> object:
            Traced.used.add("call_binop")
            return super().call_binop(*args)

    template = Traced().from_string("{% set x %}{{ '{}'.format(1 + n) }}{% endset %}{{ x }}")
    assert "".join(template.generate(n=1)) == "2"
    assert Traced.used == {"concat", "_parse", "call", "call_binop"}
