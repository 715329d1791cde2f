import pytest

from compress.data.python_families import largest_families, pieces, python_families
from compress.data.python_stdlib import SourceFile
from compress.errors import BadInput


@pytest.fixture
def folder(tmp_path):
    for family, word in (("alpha", "apple"), ("beta", "banana"), ("gamma", "x")):
        (tmp_path / family).mkdir()
        for number in range(1 if family == "gamma" else 12):
            lines = [f"{word}_{number}_{line} = {line}" for line in range(24)]
            (tmp_path / family / f"m{number}.py").write_text("\n".join(lines))
    (tmp_path / "single.py").write_text("no_package = 1\n" * 50)
    return tmp_path


def made(folder, **changes):
    settings = {
        "roots": str(folder), "families": 2, "lines": 6, "vocab_size": 280, "sequence_length": 64,
        "validation_share": 0.25, "test_share": 0.0, "cache_dir": folder / "cache",
    }  # fmt: skip
    return python_families(**{**settings, **changes})


def test_the_largest_packages_are_the_classes_and_pieces_carry_their_name(folder):
    data = made(folder)
    assert data.labels == ("alpha", "beta")
    for row in data.train:
        text = data.tokenizer.decode(row["input_ids"])
        assert ("apple" if row["labels"] == 0 else "banana") in text


def test_no_file_lies_on_both_sides_of_the_split(folder):
    data = made(folder)

    def files(part):
        texts = (data.tokenizer.decode(row["input_ids"]) for row in part)
        return {"_".join(text.split(" =")[0].split("_")[:2]) for text in texts}

    assert files(data.validation) and not files(data.train) & files(data.validation)


def test_a_shorter_rest_is_no_piece():
    assert list(pieces("a\n\nb\nc\nd\ne\n", lines=2)) == ["a\nb", "c\nd"]


def test_equal_sizes_are_chosen_by_name():
    files = [SourceFile(name=f"{name}/x.py", text="12") for name in "cab"]
    assert largest_families(files, 2) == ["a", "b"]


def test_too_few_packages_are_refused(folder):
    with pytest.raises(BadInput, match="only 3 packages"):
        made(folder, families=4)
    with pytest.raises(BadInput, match="families=1"):
        made(folder, families=1)
