"""Row sizes of each KV format."""

import pytest

from model.kv_format import KvDtype, row_bytes, row_elements


@pytest.mark.parametrize(
    ("dtype", "elements", "num_bytes"), [("float32", 128, 512), ("bfloat16", 128, 256), ("int8", 132, 132)]
)
def test_a_row_has_its_numbers_and_int8_a_scale_of_four_bytes(dtype: KvDtype, elements: int, num_bytes: int) -> None:
    assert (row_elements(dtype, 128), row_bytes(dtype, 128)) == (elements, num_bytes)
