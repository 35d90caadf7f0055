"""Jobs of the sandbox for a checkpoint's chat template: try it out, and render with it."""

import json
from collections.abc import Mapping, Sequence

import msgspec
from jinja2 import TemplateError

from server.chat.jinja_sandbox import SandboxedTemplate, TemplateRefusal
from server.chat.render_budget import TemplateBudgetExceeded

MAX_TEMPLATE_CHARS = 1 << 20
SYSTEM_PROBE = "Be brief."
TOOL_PROBE = "probe_of_tools"
PROBE_TOOLS = [{"type": "function", "function": {"name": TOOL_PROBE, "description": "", "parameters": {}}}]
HELLO: Mapping[str, object] = {"role": "user", "content": "Hello"}


class TemplateProbe(msgspec.Struct, frozen=True):
    """Traits of a template, found by rendering short conversations."""

    fault: str | None = None  # why it can never be used; completes "the chat template ..."
    writes_system: bool = False  # a message of the role "system"
    writes_tools: bool = False
    needs_tools: bool = False  # it fails on conversations whose `tools` are None


class Rendered(msgspec.Struct, frozen=True):
    """Result of one rendering: one of the fields is set."""

    text: str | None = None
    refusal: str | None = None  # the template's own message
    is_too_large: bool = False  # it takes more steps than one rendering may
    has_failed: bool = False  # in any other way


def template_variables(turns: Sequence[Mapping[str, object]], bos: str, eos: str) -> dict[str, object]:
    """Return the variables that Hugging Face's templates expect."""
    return {
        "messages": turns,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "bos_token": bos,
        "eos_token": eos,
        "tools": None,
        "documents": None,
    }


def compile_template(source: str) -> SandboxedTemplate:
    """Compile a template. Raises jinja2.TemplateError or TemplateBudgetExceeded."""
    return SandboxedTemplate(source)


def probe_template(source: str, bos: str, eos: str) -> TemplateProbe:
    """Render the simplest conversations, to find out what a template does and whether it can work at all."""
    try:
        template = _compiled(source)
    except ValueError as error:
        return TemplateProbe(str(error))
    plain = template_variables([HELLO], bos, eos)
    tools = plain | {"tools": PROBE_TOOLS}
    fault = _fault(template, plain)
    if fault is not None and _fault(template, tools) is not None:  # it may be for conversations with tools only
        return TemplateProbe(f"fails on a simple conversation: {fault}")
    system = template_variables([{"role": "system", "content": SYSTEM_PROBE}, HELLO], bos, eos)
    needs_tools = fault is not None
    if needs_tools:
        system |= {"tools": []}
    writes_system, writes_tools = _writes(template, system, SYSTEM_PROBE), _writes(template, tools, TOOL_PROBE)
    return TemplateProbe(None, writes_system, writes_tools, needs_tools)


def render_text(template: SandboxedTemplate, variables: str) -> Rendered:
    """Render a conversation. `variables`: as JSON."""
    try:
        return Rendered(template.render(json.loads(variables)))
    except TemplateRefusal as refusal:
        return Rendered(refusal=str(refusal))
    except TemplateBudgetExceeded:
        return Rendered(is_too_large=True)
    except TemplateError:
        return Rendered(has_failed=True)


def _compiled(source: str) -> SandboxedTemplate:
    """Compile a template. Raises ValueError with the fault."""
    if len(source) > MAX_TEMPLATE_CHARS:
        raise ValueError(f"has more than {MAX_TEMPLATE_CHARS} characters")
    try:
        return compile_template(source)
    except TemplateError as error:
        raise ValueError(f"is not valid jinja (line {getattr(error, 'lineno', None)})") from None
    except TemplateBudgetExceeded as error:
        raise ValueError(f"cannot be used: {error}") from None


def _fault(template: SandboxedTemplate, variables: dict[str, object]) -> str | None:
    """Return why a rendering fails. A refusal is no fault: the template may have rules of its own."""
    try:
        template.render(variables)
    except (TemplateBudgetExceeded, TemplateError) as error:
        return str(error)
    except TemplateRefusal:
        pass
    return None


def _writes(template: SandboxedTemplate, variables: dict[str, object], probe: str) -> bool:
    try:
        return probe in template.render(variables)
    except (TemplateRefusal, TemplateBudgetExceeded, TemplateError):
        return False
