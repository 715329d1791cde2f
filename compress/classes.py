"""Which class a number means: the names that a classifier's configuration gives its classes."""

from collections.abc import Mapping, Sequence
from typing import Any

from compress.errors import BadInput

SHOWN = 20
"""Names of one side that an error lists."""


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a classifier's classes in the order of their numbers, as its `config.json` says.

    >>> class_names({"id2label": {"1": "negative", "0": "positive"}})
    ('positive', 'negative')
    """
    named = config.get("id2label") or _placeholders(config.get("num_labels") or 2)
    return tuple(str(name).strip() for _, name in sorted((int(n), s) for n, s in named.items()))


def are_placeholders(classes: Sequence[str]) -> bool:
    """Whether the library made the names up, since nobody gave any.

    >>> are_placeholders(["LABEL_0", "LABEL_1"])
    True
    """
    return list(classes) == list(_placeholders(len(classes)).values())


def are_numbers(labels: Sequence[str]) -> bool:
    """Whether the labels are the classes' numbers themselves, from 0 on."""
    return list(labels) == [str(number) for number in range(len(labels))]


def shared_names(named: Mapping[str, Sequence[str]], *, told: bool = False) -> tuple[str, ...]:
    """The names of the classes of several classifiers, which must number them alike.

    Args:
        named: each one's names; made-up ones agree with any of their count.
        told: `data.labels` says what the numbers mean, so that spellings may differ.

    Raises:
        BadInput: counts, names or order differ; lists every model.
    """
    giving = {who: tuple(names) for who, names in named.items() if not are_placeholders(names)}
    different, counts = set(giving.values()), {len(names) for names in named.values()}
    moved = len({frozenset(names) for names in different}) < len(different)
    if len(counts) > 1 or moved or (len(different) > 1 and not told):
        listed = "\n".join(f"  {who}  {_numbered(names)}" for who, names in named.items())
        raise BadInput(
            f"{' and '.join(named)} do not number their classes alike:\n{listed}\n"
            "Use models of the same classes; where only spellings differ, name the data's labels "
            "in their order: data.labels=[...]"
        )
    return next(iter([*giving.values(), *map(tuple, named.values())]), ())


def names_in_data(found: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The labels of the data in the order of a model's classes.

    They are the model's names, or whole numbers, which are its classes' own. Where it has no names,
    as many words as it has classes are taken by the alphabet.

    Raises:
        BadInput: neither holds; lists both sides.

    >>> names_in_data(["a", "c"], ["c", "b", "a"])
    ['c', 'b', 'a']
    >>> names_in_data(["0", "2"], ["c", "b", "a"])
    ['0', '1', '2']
    """
    names, labels = list(classes), set(found)
    numbers = [str(number) for number in range(len(names))]
    if labels <= {name for name in names if names.count(name) == 1}:
        return names
    if labels <= set(numbers):
        return numbers
    words = not any(label.isdecimal() for label in labels)
    if words and len(labels) == len(names) and are_placeholders(names):
        return sorted(labels)
    listed = ", ".join(map(repr, sorted(labels)[:SHOWN])) + _more(len(labels))
    raise BadInput(
        f"the {len(labels)} labels of the data are not the model's {len(names)} classes:\n"
        f"  data   {listed}\n  model  {_numbered(names)}\n"
        f"Name the data's labels in the order of the model's classes, all {len(names)} of them: "
        "data.labels=[...]"
    )


def check_count(labels: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse names that are not as many as the model's classes.

    Raises:
        BadInput: lists both.
    """
    if len(labels) != len(classes):
        raise BadInput(
            f"the data has {len(labels)} classes, and the model {len(classes)}:\n"
            f"  data   {_numbered(labels)}\n  model  {_numbered(classes)}\n"
            "Name all of them, in the order of the model's, also those that the data lacks: "
            "data.labels=[...]"
        )


def check_numbers(labels: Sequence[str], classes: Sequence[str], *, told: bool) -> None:
    """Refuse data whose classes are numbered otherwise than the model's.

    Args:
        labels: names of the data's classes, in the order of their numbers.
        classes: those of the model.
        told: `data.labels` says so: then their count alone must agree.

    Raises:
        BadInput: lists both.
    """
    check_count(labels, classes)
    if not told and names_in_data(labels, classes) != list(labels):
        raise BadInput(
            "the classes of the data have other numbers than the model's:\n"
            f"  data   {_numbered(labels)}\n  model  {_numbered(classes)}\n"
            "Name them in the order of the model's: data=classification data.labels=[...]"
        )


def _placeholders(count: int) -> dict[Any, Any]:
    return {number: f"LABEL_{number}" for number in range(count)}


def _numbered(names: Sequence[str]) -> str:
    return ", ".join(f"{n} {name!r}" for n, name in enumerate(names[:SHOWN])) + _more(len(names))


def _more(count: int) -> str:
    return f" and {count - SHOWN} more" if count > SHOWN else ""
