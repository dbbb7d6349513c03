"""An encoded value, before it is stored anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.system.records import dataclass

from .strided import dense

if TYPE_CHECKING:
    from .strided import Bytes, Source


@dataclass(frozen=True, slots=True)
class Payload:
    """An encoded value: ``head`` rebuilds it from the ``buffers`` that the sources make.

    ``held`` keeps the memory that ``head`` refers to alive; ``descriptors`` of this process lead to
    it. ``functions`` is the record of the composition of the functions in it; see
    ``serialization.composition``. ``classes`` are sent with their attributes.
    """

    head: bytes
    sources: tuple[Source, ...]
    held: tuple[object, ...] = ()
    descriptors: tuple[int, ...] = ()
    functions: Any = None
    classes: tuple[type, ...] = ()

    @property
    def buffers(self) -> tuple[Bytes, ...]:
        """The bytes of each source; scattered ones are copied together, at each access."""
        return tuple(map(dense, self.sources))

    @property
    def nbytes(self) -> int:
        """Bytes of head and buffers together."""
        return len(self.head) + sum(source.nbytes for source in self.sources)
