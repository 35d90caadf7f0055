"""server/cli/chat/expert_bars.py: bars of GET /experts."""

from server.cli.chat.expert_bars import expert_lines


def test_a_bar_is_half_full_at_twice_the_even_share() -> None:
    layer = {"layer": 3, "tokens": [8, 4, 2, 2], "share": [0.5, 0.25, 0.125, 0.125]}
    assert expert_lines({"layers": [layer]}) == ["layer 3  |▄▂▁▁|  most: expert 0, 50%"]


def test_a_bar_is_never_more_than_full() -> None:
    share = [1.0, *[0.0] * 7]
    [line] = expert_lines({"layers": [{"layer": 0, "tokens": [1, *[0] * 7], "share": share}]})
    assert "|█       |" in line


def test_without_experts_or_tokens_a_line_says_so() -> None:
    assert expert_lines({"layers": []}) == ["this model has no experts"]
    idle = {"layer": 0, "tokens": [0, 0], "share": [0.0, 0.0]}
    assert expert_lines({"layers": [idle]}) == ["no tokens in the last minute"]
