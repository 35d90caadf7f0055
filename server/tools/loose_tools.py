"""Tools whose `parameters` say more than a grammar can, as many clients' do.

In OpenAI's API the arguments follow the schema where a tool is `strict`; what cannot be followed is then refused. For
any other tool the schema is a description: what a grammar can say of it holds, and the rest is named to the client.
"""

from server.event_loop import INLINE_CHARS, off_loop
from server.structured_output.grammar_checker import GrammarChecker
from server.tools.constraints import ToolUse, arguments_alone


async def unsupported_schema_keywords(use: ToolUse, checker: GrammarChecker, num_chars: int) -> dict[int, list[str]]:
    """Places of such tools among the tools, and what will not be followed, as paths into the request.

    `num_chars`: of all tools together. Raises ApiError 400 for one that is too large, 429 where too many wait.
    """
    tools = [(i, tool) for i, tool in use.callable_tools if not tool.function.strict]
    constraints = await off_loop(
        lambda: [(i, arguments_alone(i, tool)) for i, tool in tools], heavy=num_chars > INLINE_CHARS
    )
    found = {i: (constraint.param, await checker.unsupported_keywords(constraint)) for i, constraint in constraints}
    return {i: [f"{param}.{keyword}" for keyword in keywords] for i, (param, keywords) in found.items() if keywords}
