"""ctypes structs have the fields of model/native/smoe_native.h: the same names and types in the same order."""

import ctypes
import re
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p

import pytest

from model.ops.native.sampling import SamplingArguments
from model.ops.native.structs import (
    ExpertArguments,
    LayerArguments,
    LowRankArguments,
    MatrixArguments,
    NetworkArguments,
    StepArguments,
)
from tests.support.paths import ROOT

HEADER = (ROOT / "model" / "native" / "smoe_native.h").read_text()
STRUCTS = {
    "smoe_matrix": MatrixArguments,
    "smoe_expert": ExpertArguments,
    "smoe_low_rank": LowRankArguments,
    "smoe_layer": LayerArguments,
    "smoe_network": NetworkArguments,
    "smoe_step": StepArguments,
    "smoe_sampling": SamplingArguments,
}
TYPES = {"int": c_int, "float": c_float, "int64_t": c_int64, "smoe_matrix": MatrixArguments}
POINTERS = {
    name: POINTER(struct)
    for name, struct in (
        ("smoe_matrix", MatrixArguments),
        ("smoe_expert", ExpertArguments),
        ("smoe_layer", LayerArguments),
    )
}


def _fields(name: str) -> list[tuple[str, object]]:
    """Return names and ctypes types of a struct's fields in the header."""
    [body] = re.findall(r"typedef struct \{([^}]*)\} " + name + ";", HEADER)
    fields: list[tuple[str, object]] = []
    for declaration in re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL).split(";")[:-1]:
        match = re.fullmatch(r"\s*(?:const )?(\w+)(.*)", declaration, re.DOTALL)
        assert match, declaration
        for declarator in match[2].split(","):
            pointer = POINTERS.get(match[1], c_void_p)
            fields.append((declarator.strip(" *\n"), pointer if "*" in declarator else TYPES[match[1]]))
    return fields


@pytest.mark.parametrize("name", STRUCTS)
def test_a_struct_has_the_fields_of_the_header(name: str) -> None:
    struct: type[ctypes.Structure] = STRUCTS[name]
    assert [tuple(field) for field in struct._fields_] == _fields(name)
