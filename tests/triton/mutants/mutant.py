"""One hand-made bug in a kernel, as an edit of the source."""

from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

KERNELS = ROOT / "model" / "ops" / "triton"


@dataclass(frozen=True)
class Mutant:
    """Replacement of source text in one file of model/ops/triton, which must contain the old text exactly once."""

    kernel: str  # the kernel, or the function that several of them share
    file: str  # path in that folder, without .py
    old: str
    new: str
    tests: tuple[str, ...]  # that must fail, in tests/triton

    @property
    def module(self) -> str:
        return f"model.ops.triton.{self.file.replace('/', '.')}"

    @property
    def text(self) -> str:
        return f"{self.kernel}: {' '.join(self.old.split())} -> {' '.join(self.new.split()) or 'nothing'}"

    def source(self) -> str:
        """Return the file's text with the bug. Raises ValueError if the old text does not occur exactly once."""
        original = Path(KERNELS / f"{self.file}.py").read_text()
        if original.count(self.old) != 1:
            raise ValueError(f"{self.file}.py contains {original.count(self.old)} times: {self.old}")
        return original.replace(self.old, self.new)
