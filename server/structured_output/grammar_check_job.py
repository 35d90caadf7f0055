"""The check of one grammar, as a sandbox process runs it: build its matcher and the first mask, as the engine will."""

import msgspec

from engine.errors import GrammarError
from engine.grammars.matcher import GrammarCompiler
from engine.types import Vocabulary

MAX_FAULT_CHARS = 1000


class Verdict(msgspec.Struct, frozen=True):
    """Result of a check: llguidance's message, or None for a grammar that can be used."""

    fault: str | None


def make_compiler(tokens: list[bytes], special_ids: list[int], vocab_size: int, eos_ids: list[int]) -> GrammarCompiler:
    """Build the compiler that checks share, with its table of tokens, which takes 0.1 s."""
    compiler = GrammarCompiler(Vocabulary(tokens, special_ids), vocab_size, eos_ids)
    compiler.warm_up()
    return compiler


def check_grammar(compiler: GrammarCompiler, grammar: str) -> Verdict:
    """Return what is wrong with a grammar: invalid, unsatisfiable, or beyond the limits of engine.grammars.matcher."""
    try:
        compiler.check(grammar)
    except GrammarError as error:
        return Verdict(str(error)[:MAX_FAULT_CHARS])
    return Verdict(None)
