"""Whatever one tenant sends, another tenant's replies are the same bits, with usage and cached tokens."""

import uvloop

from tests.noninterference.comparison import compare_cases


def test_no_request_of_one_tenant_changes_a_reply_to_another(scale: int) -> None:
    figures = uvloop.run(compare_cases(seed=1, count=96 * scale))
    assert figures.differences == []
    assert figures.cases == 96 * scale
    assert figures.num_cached_tokens and figures.num_turns_with_both and figures.num_attacks, figures
