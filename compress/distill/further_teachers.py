"""Teachers beside the run's own, by the folder or the hub name of their checkpoint."""

from typing import Any

from compress.contract import Teacher
from compress.teachers.local import LocalTeacher, load_hf_teacher


def as_teacher(given: Any) -> Teacher:
    """A teacher as it is, or the local one that a path names.

    Raises:
        BadInput: there is no such checkpoint.
    """
    if isinstance(given, str):
        return LocalTeacher(load_hf_teacher(given), name_or_path=given)
    teacher: Teacher = given
    return teacher
