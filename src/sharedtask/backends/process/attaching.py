"""The message that gives a published value to a worker, and its decoding in the worker."""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

from sharedtask.errors import SharedTaskError
from sharedtask.memory import locations
from sharedtask.memory.integrity import Mark
from sharedtask.memory.segments import Layout
from sharedtask.store import stores
from sharedtask.store.stores import ReceivedBytes, SegmentStore, Store

from .wire import Frame, Kind

if TYPE_CHECKING:
    from sharedtask.store.publication import Publication

# A value may refer to further files; the worker opens those beyond this number through /proc.
_MOST_BESIDE = 12


def frame_of(publication: Publication, *, private: bool) -> Frame:
    """The message that gives a published value to a worker."""
    store: Any = publication.store  # one of stores.keep()
    in_segment = type(store) is SegmentStore
    layout = (store.layout.parts, store.layout.size)
    mark, data = (tuple(store.mark), None) if in_segment else (None, store.data)
    body = pickle.dumps((layout, mark, private, data))
    fds: Any = (store.fd,) if in_segment else ()
    if publication.descriptors and not locations.is_reachable():
        fds += tuple(dict.fromkeys(publication.descriptors))[:_MOST_BESIDE]
    return Frame(Kind.ATTACH, chunk=publication.token, body=body, fds=fds)


def stores_of(frame: Frame) -> tuple[Store, list[locations.Received]]:
    """Map a segment; the descriptor stays open if private copies are needed.

    A failure is kept: every item that needs the value reports it. Returns also the memory that the
    value refers to, if this process could not open it by itself.
    """
    layout, mark, private, data = pickle.loads(frame.body)
    if data is not None:
        attachments = [locations.Received(fd) for fd in frame.fds]
        return ReceivedBytes(data, Layout(*layout)), attachments
    fd, *others = frame.fds
    attachments = [locations.Received(other) for other in others]
    try:
        store = stores.unseal(fd, Layout(*layout), Mark(*mark))
    except SharedTaskError as error:
        os.close(fd)
        return stores.RefusedStore(error), attachments
    if not private:
        store.close_descriptor()
    return store, attachments
