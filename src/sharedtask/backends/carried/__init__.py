"""What backends share whose chunks another library carries to its workers: Ray, or loky.

    caller   WorkItem -> Message -> (the library) -> Answer -> report
    worker                           run a chunk, record it in a status file

Decides what a message and an answer contain, and what becomes of the items of a worker that died.
Must not know which library carries them.
"""
