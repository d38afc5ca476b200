"""A package of its own, so that processes which a test starts find it before any other that is
called `tests`.
"""
