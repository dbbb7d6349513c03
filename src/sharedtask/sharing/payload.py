"""An encoded value, before it is stored anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Payload:
    """An encoded value: ``head`` rebuilds it when given ``buffers`` of the same lengths.

    ``held`` keeps the memory that ``head`` refers to where it is, and these ``descriptors`` of this
    process lead to it.
    """

    head: bytes
    buffers: tuple[npt.NDArray[np.uint8], ...]
    held: tuple[object, ...] = ()
    descriptors: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of head and buffers together."""
        return len(self.head) + sum(buffer.nbytes for buffer in self.buffers)
