"""LocalEngine: prompts of either kind, texts of completions, and counts that add up."""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from engine.errors import RequestRejectedError
from engine.types import RequestOutput
from server.tokenizer.tokenizer import TokenizerError
from smoe import Completion, LocalEngine, SamplingParams
from tests.support.paths import DEMO, ROOT

GREEDY = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    torch.set_num_threads(1)
    return LocalEngine(DEMO, threads=1, num_kv_blocks=40, max_num_batched_tokens=64)


def test_a_text_and_its_token_ids_give_the_same_tokens_and_only_the_text_is_decoded(engine: LocalEngine) -> None:
    ids = engine.tokenizer.encode("It was")
    [by_text] = engine.generate("It was", GREEDY)
    [by_ids] = engine.generate(ids, GREEDY)
    assert by_text.token_ids == by_ids.token_ids and len(by_ids.token_ids) == 5
    assert by_ids.text is None
    assert by_text.text is not None
    assert engine.tokenizer.decode(ids + by_text.token_ids) == engine.tokenizer.decode(ids) + by_text.text


def test_each_prompt_has_its_own_parameters(engine: LocalEngine) -> None:
    each = [SamplingParams(max_tokens=count, temperature=0, ignore_eos=True) for count in (1, 3)]
    assert [len(completion.token_ids) for completion in engine.generate([[1, 5], [1, 6]], each)] == [1, 3]
    with pytest.raises(ValueError, match="shorter"):
        engine.generate([[1, 5], [1, 6]], each[:1])
    while engine.has_work():
        engine.step()


def test_a_rejected_prompt_leaves_nothing_behind(engine: LocalEngine) -> None:
    with pytest.raises(RequestRejectedError):
        engine.generate([[1, 5], [1, 6]], [GREEDY, SamplingParams(adapter="nobody's")])
    assert not engine.has_work()
    assert len(engine.generate([1, 5], GREEDY)[0].token_ids) == 5


def test_requests_of_add_keep_their_outputs_while_generate_computes(engine: LocalEngine) -> None:
    added = engine.add([1, 7], GREEDY)
    [completion] = engine.generate([1, 5], GREEDY)
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    assert len(completion.token_ids) == 5 and {output.request_id for output in outputs} == {added}
    assert sum(len(output.token_ids) for output in outputs) == 5


def test_requests_of_an_interrupted_call_end_with_it(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: LocalEngine) -> list[RequestOutput]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "_compute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([[1, 5], [1, 6]], GREEDY)
    assert not engine.has_work()


def test_an_aborted_request_has_no_output_that_generate_has_computed(engine: LocalEngine) -> None:
    added = engine.add([1, 7], GREEDY)
    engine.generate([1, 5], GREEDY)
    assert engine.has_work()
    engine.abort(added)
    assert not engine.has_work()


def test_a_rejected_request_that_is_aborted_has_no_output(engine: LocalEngine) -> None:
    engine.abort(engine.add([1] * 10_000, GREEDY))
    outputs = []
    while engine.has_work():
        outputs += engine.step()
    assert outputs == []


def test_answers_end_at_the_end_that_the_tokenizer_names(tmp_path: Path) -> None:
    """config.json of the copy names only </s>."""
    copy = shutil.copytree(DEMO, tmp_path / "copy")
    file = copy / "tokenizer_config.json"
    turn = {"3071": {"content": "<end of turn>", "special": True}}
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"eos_token": "<end of turn>", "added_tokens_decoder": turn})
    )
    (copy / "SHA256SUMS").unlink(missing_ok=True)
    only_end = SamplingParams(max_tokens=3, allowed_token_ids=(3071,))
    [completion] = LocalEngine(copy, threads=1, num_kv_blocks=8, max_num_batched_tokens=64).generate([1, 5], only_end)
    assert completion.token_ids == [3071] and completion.finish_reason == "stop"


def test_a_damaged_tokenizer_fails_at_load_and_without_one_token_ids_work(tmp_path: Path) -> None:
    """A damaged one would name other ends, or none."""
    copy = shutil.copytree(DEMO, tmp_path / "copy")
    small = {"threads": 1, "num_kv_blocks": 8, "max_num_batched_tokens": 64}
    for name in ("tokenizer_config.json", "tokenizer.model"):
        (copy / name).write_text("{")
        with pytest.raises(TokenizerError, match=re.escape(f"{copy / name}: ")):
            LocalEngine(copy, **small)
        (copy / name).unlink()
    engine = LocalEngine(copy, **small)
    assert len(engine.generate([1, 5], GREEDY)[0].token_ids) == 5
    with pytest.raises(TokenizerError, match="no tokenizer"):
        engine.generate("It was", GREEDY)


def test_a_text_is_embedded_between_its_control_tokens(engine: LocalEngine) -> None:
    ids = engine.tokenizer.encode_to_embed("It was")
    [by_text] = engine.embed("It was")
    assert [by_text] == engine.embed(ids) and len(by_text) == engine._engine.loaded.config.dim
    assert [len(vector) for vector in engine.embed(["It was", ids], dimensions=3)] == [3, 3]
    with pytest.raises(RequestRejectedError, match="the prompt has 0 tokens"):
        engine.embed([[]])


def test_an_aborted_request_has_no_output(engine: LocalEngine) -> None:
    request_id = engine.add([1, 5], GREEDY)
    engine.step()
    engine.abort(request_id)
    assert not engine.has_work() and engine.stats.num_blocks_held == 0
    engine.check_integrity()


def test_a_reset_clears_the_expert_counts(engine: LocalEngine) -> None:
    engine.generate([1, 5], GREEDY)
    assert all(sum(layer.tokens) for layer in engine.experts().layers)
    engine.reset_experts()
    assert not any(sum(layer.tokens) for layer in engine.experts().layers)


def test_completion_counts_are_those_of_its_routing() -> None:
    completion = Completion([1], expert_prompt_tokens=[[9, 0, 0], [9, 0, 0]])
    completion.expert_routing = [[[0, 2], [1, 0]], [[2, 1], [1, 0]]]
    assert completion.expert_completion_tokens == [[1, 1, 2], [2, 2, 0]]
    assert Completion([1]).expert_completion_tokens == []


def test_the_module_is_also_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "smoe", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, version("smoe")), result.stderr
