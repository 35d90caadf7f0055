"""The example in ForwardBatch's docstring."""

from tests.support.kernels.paged import Running, make_batch


def test_the_example_of_the_batch_is_what_the_builder_makes() -> None:
    """A decode row at position 5 beside a prefill of two tokens."""
    batch = make_batch([(Running([0] * 6, [7, 2], 5), 1), (Running([0] * 2, [3]), 2)], block_size=4)
    assert batch.slot_mapping.tolist() == [9, 12, 13]
    assert batch.query_start.tolist() == [0, 1, 3]
    assert batch.block_tables.tolist() == [[7, 2], [3, 0]]
