"""server/structured_output/gbnf.py: grammars in llama.cpp's notation allow the same texts in Lark's."""

from collections.abc import Sequence

import pytest

from server.errors import ApiError
from server.structured_output.constraints import Constraint
from server.structured_output.gbnf import as_lark
from tests.support.tool_calling import allows

SQL = """
    root ::= select_statement
    select_statement ::= "SELECT " column " from " table " where " condition
    column ::= "col_1 " | "col_2 "
    table ::= "table_1 " | "table_2 "
    condition ::= column "= " number
    number ::= "1 " | "2 "
"""
ARITHMETIC = r"""
root  ::= (expr "=" term)+  # a comment
expr  ::= term ([-+*/] term)*
term  ::= x-name | [0-9]+ | "(" expr ")"
x-name ::= [a-z] [a-z0-9_]{0,2}
"""
CASES: list[tuple[str, Sequence[str], Sequence[str]]] = [
    (SQL, ["SELECT col_1  from table_2  where col_2 = 1 "], ["SELECT col_3  from table_2  where col_2 = 1 ", ""]),
    (ARITHMETIC, ["(a+1)*2=b_1", "1=2"], ["a+=1", "abcd=1", "1="]),
    (r'root ::= "\"\n" [^"\\]', ['"\nx'], ['"\n"', "x"]),
]


@pytest.mark.parametrize(("grammar", "allowed", "refused"), CASES)
def test_a_translated_grammar_allows_what_the_original_describes(
    grammar: str, allowed: Sequence[str], refused: Sequence[str]
) -> None:
    translated = Constraint(as_lark(grammar, "p"), "p").grammar
    assert [text for text in allowed if not allows(translated, text, version=1)] == []
    assert [text for text in refused if allows(translated, text, version=1)] == []


def test_a_grammar_in_larks_notation_is_left_as_it_is() -> None:
    lark = 'start: "::=" NAME\nNAME: /[a-z]+/\n'
    assert as_lark(lark, "p") == lark


@pytest.mark.parametrize(
    "grammar",
    ["root ::= (", 'root ::= "a', "root ::= other", 'start ::= "a"', "root ::= " + "(" * 5000 + '"a"' + ")" * 5000],
    ids=lambda grammar: grammar[:12],
)
def test_what_is_no_gbnf_is_a_400_that_says_what_to_write(grammar: str) -> None:
    with pytest.raises(ApiError) as caught:
        as_lark(grammar, "guided_grammar")
    assert (caught.value.status, caught.value.param) == (400, "guided_grammar")
    assert "name ::= ..." in caught.value.message and grammar not in caught.value.message
