"""Text, instruction and classification data, and the embedded default, as tokenised parts."""

from compress.data.classification import classification
from compress.data.hub import hub
from compress.data.instruction import instruction
from compress.data.loader import ResumableLoader, sequential_loader
from compress.data.python_families import python_families
from compress.data.python_stdlib import python_stdlib
from compress.data.sentences import sentences
from compress.data.text_data import TextData
from compress.data.text_files import text_files

__all__ = [
    "ResumableLoader",
    "TextData",
    "classification",
    "hub",
    "instruction",
    "python_families",
    "python_stdlib",
    "sentences",
    "sequential_loader",
    "text_files",
]
