"""Tables of `smoe explain`, from gates that are known."""

import json

import pytest

from server.cli.colours import Colours
from server.cli.explain.gates import Gate, ModelShape, RoutedText, mask_without, usable_numbers
from server.cli.explain.report import as_json, bars, introduction, token_table, worked_layer

PLAIN = Colours(is_on=False)
MODEL = ModelShape("m", 2, 4, 2)
SPARSE = Gate([1.0, 3.0, 0.0, 2.0], [1, 3], [0.731, 0.269])
ONE = Gate([1.0, 3.0, 0.0, 2.0], [1], [1.0])
TWO = RoutedText(2, ["<s>", " not\n"], [[SPARSE, ONE], [ONE, SPARSE]])


def test_a_bar_is_a_weight_and_experts_that_were_not_chosen_have_none() -> None:
    assert bars(SPARSE) == "·▆·▃"
    assert bars(ONE) == "·█··"
    assert bars(Gate([0.0] * 4, [0, 1, 2, 3], [0.0, 0.125, 0.126, 0.749])) == "▁▁▂▆"


def test_a_token_has_a_line_per_layer_and_a_column_per_k() -> None:
    one = RoutedText(1, TWO.tokens, [[ONE, ONE], [ONE, ONE]])
    lines = token_table([one, TWO], 1, PLAIN)
    assert lines[0] == r'token 1 of 2: " not\n"'
    assert lines[1].split() == ["layer", "k", "=", "1", "k", "=", "2"]
    assert lines[2:] == ["      0   ·█··  1 1.00   ·█··  1 1.00", "      1   ·█··  1 1.00   ·▆·▃  1 0.73  3 0.27"]


def test_a_layer_is_computed_step_by_step() -> None:
    lines = "\n".join(worked_layer(TWO, 1, 1, [[True] * 4, [True, True, False, True]]))
    assert "gate logits: 0: 1.000  1: 3.000  2: 0.000  3: 2.000" in lines
    assert "the 2 largest without 2, switched off: experts 1, 3" in lines
    assert "exp(logit - 3.000): 1.000  0.368; sum 1.368" in lines
    assert "0.731 x expert 1 + 0.269 x expert 3" in lines


def test_control_characters_of_tokens_are_harmless() -> None:
    text = RoutedText(1, ["\x1b[31m\x9b"], [[ONE, ONE]])
    assert "\x1b" not in "".join(token_table([text], 0, PLAIN)) and "\x9b" not in "".join(token_table([text], 0, PLAIN))


def test_json_has_every_number() -> None:
    parsed = json.loads(as_json(MODEL, [TWO], None))
    assert parsed["model"]["num_experts"] == 4 and parsed["expert_mask"] is None
    assert parsed["runs"][0]["gates"][1][1] == {"logits": [1, 3, 0, 2], "experts": [1, 3], "weights": [0.731, 0.269]}
    assert "2 tokens" in " ".join(introduction(MODEL, TWO))


def test_experts_that_are_off_bound_the_number_of_experts() -> None:
    mask = mask_without(["1:0", "1:3", "0:2"], MODEL)
    assert mask == [[True, True, False, True], [False, True, True, False]]
    assert usable_numbers([], MODEL, mask) == [1, 2]
    assert usable_numbers([], MODEL, None) == [1, 2, 4]
    assert usable_numbers([3, 1, 3], MODEL, None) == [1, 3]
    with pytest.raises(ValueError, match="1 to 2"):
        usable_numbers([4], MODEL, mask)
    assert mask_without([], MODEL) is None


@pytest.mark.parametrize("name", ["", "1", "1:", ":1", "a:b", "-1:0", "2:0", "0:4", "1:1:1"])
def test_a_wrong_expert_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="--off"):
        mask_without([name], MODEL)


def test_a_layer_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="every layer"):
        usable_numbers([], MODEL, mask_without([f"0:{expert}" for expert in range(4)], MODEL))
