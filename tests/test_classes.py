"""Claims about which class a number means."""

import pytest

from compress.classes import check_numbers, class_names, names_in_data, shared_names
from compress.errors import BadInput

MOODS = ("positive", "negative")
MADE_UP = ("LABEL_0", "LABEL_1")


def test_names_come_in_the_order_of_their_numbers():
    assert class_names({"id2label": {"10": "c", "2": "b", "0": "a"}}) == ("a", "b", "c")
    assert class_names({}) == MADE_UP


def test_the_models_order_holds_whatever_the_alphabet_says():
    assert names_in_data(["negative", "positive"], MOODS) == list(MOODS)


def test_a_class_that_the_data_lacks_keeps_its_number():
    assert names_in_data(["c"], "abc") == ["a", "b", "c"]


@pytest.mark.parametrize("classes", [MOODS, MADE_UP])
def test_whole_numbers_are_the_models_own(classes):
    assert names_in_data(["1"], classes) == ["0", "1"]


def test_a_name_that_is_a_number_is_a_name_first():
    assert names_in_data(["1", "2"], ["2", "1", "0"]) == ["2", "1", "0"]


def test_as_many_words_as_nameless_classes_are_taken_by_the_alphabet():
    assert names_in_data(["b", "a"], MADE_UP) == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "classes"),
    [
        (["neg", "positive"], MOODS),
        (["1", "2"], MOODS),
        (["a", "b", "c"], MADE_UP),
        (["a"], MADE_UP),
        (["1", "2"], MADE_UP),
        (["same"], ["same", "same"]),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_both_sides(found, classes):
    with pytest.raises(BadInput) as refused:
        names_in_data(found, classes)
    said = str(refused.value)
    assert f"data   {', '.join(map(repr, found))}" in said and "data.labels=[...]" in said
    assert f"model  0 {classes[0]!r}, 1 {classes[1]!r}" in said


def test_models_that_number_their_classes_alike_share_their_names():
    assert shared_names({"teacher": MADE_UP, "student": MOODS}) == MOODS
    assert shared_names({}) == ()
    assert shared_names({"teacher": MOODS, "student": ("pos", "neg")}, told=True) == MOODS


@pytest.mark.parametrize(
    ("other", "told"),
    [(MOODS[::-1], False), (MOODS[::-1], True), (("pos", "neg"), False), ("abc", True)],
)
def test_models_that_number_them_otherwise_are_refused(other, told):
    with pytest.raises(BadInput, match=r"(?s)teacher and student do not.*0 'positive', 1 'neg"):
        shared_names({"teacher": MOODS, "student": other}, told=told)


def test_data_of_another_order_or_count_is_refused():
    check_numbers(MOODS, MOODS, told=False)
    check_numbers(("pos", "neg"), MOODS, told=True)
    with pytest.raises(BadInput, match=r"other numbers than the model's(?s:.*)data\.labels"):
        check_numbers(MOODS[::-1], MOODS, told=False)
    with pytest.raises(BadInput, match="the data has 3 classes, and the model 2"):
        check_numbers("abc", MOODS, told=True)
