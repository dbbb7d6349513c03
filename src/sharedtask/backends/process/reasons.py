"""Why a pool ended, or refuses: the texts of errors."""

CLOSED = (
    "the pool was shut down while this call was running. Call again: a new pool starts by itself."
)

LOST = (
    "the program has closed file descriptors that it did not open, and with them the connections to"
    " the workers that this call had. Call again: a new pool starts by itself."
)

DAMAGED = (
    "an exception ({}) came while the library changed its table of workers, so the pool was ended."
    " Call again: a new pool starts by itself."
)

INSIDE = (
    "a signal handler or a finalizer has interrupted the library in the middle of a change, and"
    " asks for results of a call that was begun before, which would never come. Begin a call of its"
    " own there, or note what is to be done and do it later."
)
