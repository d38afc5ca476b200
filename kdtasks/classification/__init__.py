"""Classification: networks, data, evaluation and pictures. The methods themselves are in
:mod:`kdtasks.general`.
"""

__all__ = []
