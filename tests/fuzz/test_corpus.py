"""Each kept input, and a few mutations of it that never change, break no promise. `make fuzz` goes on from there."""

import itertools

import pytest

from tests.fuzz.__main__ import endless_inputs
from tests.fuzz.kept_inputs import inputs_of
from tests.fuzz.targets import TARGETS

NUM_MUTATIONS = {"heads": 150, "json": 2000, "schemas": 300, "templates": 300, "tokenizers": 100, "frames": 2000}
NUM_SAMPLINGS = 30


@pytest.mark.parametrize("name", TARGETS)
def test_no_kept_input_and_no_mutation_of_one_fails(name: str, scale: int) -> None:
    kept = len(inputs_of(name))
    assert kept
    for data in itertools.islice(endless_inputs(name, seed=0), kept + scale * NUM_MUTATIONS.get(name, NUM_SAMPLINGS)):
        try:
            TARGETS[name].check(data)
        except Exception as error:
            error.add_note(f"input: {data!r}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_notices_a_broken_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fuzzer whose check has lost its object would pass for ever."""
    broken = {
        "heads": "tests.fuzz.heads.Connection.data_received",
        "json": "tests.fuzz.targets.parse_object",
        "schemas": "tests.fuzz.targets.constraint_of",
        "templates": "tests.fuzz.targets.SandboxedTemplate.render",
        "tokenizers": "tests.fuzz.targets.load_tokenizer",
        "frames": "tests.fuzz.targets.FrameReader.feed",
        "sampling": "tests.fuzz.targets.sampled_by",
    }

    def fails(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(broken[name], fails)
    caught = 0
    for data in inputs_of(name):
        try:
            TARGETS[name].check(data)
        except ZeroDivisionError:
            caught += 1
    assert caught
