"""Code books of the GGUF types IQ2 and IQ3: the magnitudes that each code stands for. Imports numpy, no torch.

code_books.inc lists them for the native library as well. Source of the numbers: ggml-common.h of llama.cpp.
"""

import re
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INC_FILE = Path(__file__).with_suffix(".inc")
IQ2_MAGNITUDES = np.array((8, 25, 43), np.int8)
MAGNITUDES = {
    "IQ3_S": np.arange(1, 16, 2, dtype=np.int8),
    "IQ3_XXS": np.array((4, 12, 20, 28, 36, 44, 52, 62), np.int8),
    "IQ2_S": IQ2_MAGNITUDES,
    "IQ2_XS": IQ2_MAGNITUDES,
    "IQ2_XXS": IQ2_MAGNITUDES,
}


@cache
def code_book(type_name: str) -> NDArray[np.int8]:
    """Return the magnitudes [codes, magnitudes of a code] of a type of MAGNITUDES."""
    listed = re.search(rf"CODE_BOOK\({type_name},([^)]*)\)", INC_FILE.read_text("ascii"))
    assert listed is not None
    entries = np.array([int(entry, 16) for entry in listed[1].split(",")], np.uint16)
    count = 4 if type_name.startswith("IQ3") else 8
    places = np.arange(0, 16, 16 // count, dtype=np.uint16)
    book: NDArray[np.int8] = MAGNITUDES[type_name][entries[:, None] >> places & ((1 << 16 // count) - 1)]
    return book
