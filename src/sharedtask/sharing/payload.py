"""An encoded value, before it is stored anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharedtask.sharing.scattered import dense

if TYPE_CHECKING:
    from sharedtask.sharing.composition import Composition, Record
    from sharedtask.sharing.scattered import Bytes, Source


@dataclass(frozen=True, slots=True)
class Payload:
    """An encoded value: ``head`` rebuilds it when given the ``buffers`` that the sources make.

    ``held`` keeps the memory that ``head`` refers to where it is, and these ``descriptors`` of this
    process lead to it. ``functions`` tells what the functions in it were made of.
    """

    head: bytes
    sources: tuple[Source, ...]
    held: tuple[object, ...] = ()
    descriptors: tuple[int, ...] = ()
    functions: Record | None = None

    @property
    def buffers(self) -> tuple[Bytes, ...]:
        """The bytes of each source; what lies apart is gathered, at each access."""
        return tuple(map(dense, self.sources))

    def composition(self, value: object) -> Composition | None:
        """What the function that was encoded was made of; None of any other value."""
        return None if self.functions is None else self.functions.composition(value)

    @property
    def nbytes(self) -> int:
        """Bytes of head and buffers together."""
        return len(self.head) + sum(source.nbytes for source in self.sources)
