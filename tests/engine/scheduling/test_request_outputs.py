"""Finish reasons and outputs as functions of a sequence."""

from typing import Any

import pytest

from engine.scheduling.request_outputs import error_output, final_output, finish_reason, progress_output
from engine.scheduling.sequence import Sequence
from engine.scheduling.step_plan import Sampled
from engine.types import FinishReason, Request, SamplingParams, TokenLogprobs

EOS, STOP, OTHER = 2, 7, 9
SCORED = TokenLogprobs(OTHER, -0.5, [], [])


def _sequence(generated: list[int], max_generated: int = 10, **params: Any) -> Sequence:
    request = Request(0, [1, 1], SamplingParams(**params), arrival_s=1.0)
    sequence = Sequence(request, (0, 0), max_generated, eos_token_ids=[EOS])
    sequence.token_ids += generated
    return sequence


@pytest.mark.parametrize(
    ("generated", "params", "expected"),
    [
        ([OTHER], {}, (None, None)),
        ([EOS], {}, ("stop", EOS)),
        ([EOS], {"ignore_eos": True}, (None, None)),
        ([STOP], {"stop_token_ids": (STOP,), "ignore_eos": True}, ("stop", STOP)),
        ([OTHER, EOS], {"min_tokens": 2}, (None, None)),
        ([OTHER, OTHER, EOS], {"min_tokens": 2}, ("stop", EOS)),
        ([OTHER] * 10, {}, ("length", None)),
        ([OTHER] * 9 + [EOS], {}, ("stop", EOS)),
    ],
)
def test_a_sequence_ends_at_an_end_token_after_min_tokens_or_at_its_limit(
    generated: list[int], params: dict[str, Any], expected: tuple[FinishReason | None, int | None]
) -> None:
    assert finish_reason(_sequence(generated, **params), generated[-1], len(generated)) == expected


def test_prompt_logprobs_come_with_the_first_output_only() -> None:
    first, second = _sequence([OTHER], prompt_logprobs=True), _sequence([OTHER, OTHER], prompt_logprobs=True)
    for sequence in (first, second):
        sequence.prompt_logprobs = [SCORED]
    assert progress_output(first, [Sampled(OTHER, SCORED)]).prompt_logprobs == [SCORED]
    assert progress_output(second, [Sampled(OTHER, SCORED)]).prompt_logprobs is None
    assert progress_output(second, [Sampled(OTHER, SCORED)]).logprobs == [SCORED]


def test_a_last_output_has_its_reason_its_token_and_its_timing() -> None:
    output = final_output(_sequence([EOS]), "stop", 5.0, sampled=[Sampled(EOS)], stop_token_id=EOS)
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([EOS], "stop", EOS)
    assert output.timing is not None and (output.timing.arrival_s, output.timing.finished_s) == (1.0, 5.0)


def test_an_error_output_has_no_tokens() -> None:
    output = error_output(_sequence([OTHER]), "it failed", 5.0)
    assert (output.token_ids, output.finish_reason, output.error) == ([], "error", "it failed")
