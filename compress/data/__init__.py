"""Text, instruction and classification data, and the embedded default, as tokenised parts."""

from compress.data.python_stdlib import python_stdlib
from compress.data.text_data import TextData

__all__ = ["TextData", "python_stdlib"]
