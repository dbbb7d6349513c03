"""The operating system and the interpreter: libc, descriptors, cgroups, signals, threads.

Decides how each is called safely. Must not know what is shared, nor that there are tasks.
"""
