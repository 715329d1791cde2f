import gzip
import subprocess
import sys

import pytest

from compress.data.read_files import content_of, find_files, read_blocks, read_lines, read_rows
from compress.errors import BadInput


def blocks(path):
    return "".join(read_blocks(path))


@pytest.mark.parametrize("read", [read_blocks, read_lines])
def test_text_comes_back_whole_whatever_the_packing(tmp_path, read):
    text = "Größe 北京 🌲\n" * 120_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for name in ("a.txt", "b.txt.gz", "c.txt"):
        assert "".join(read(tmp_path / name)) == text


@pytest.mark.parametrize("read", [read_blocks, read_lines])
@pytest.mark.parametrize("before", [0, 5, (1 << 20) - 1, 1 << 20, 3_000_000])
def test_a_broken_byte_is_told_with_its_file_and_offset(tmp_path, read, before):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a" * before + b"\xff" + b"b" * 10)
    with pytest.raises(BadInput, match=rf"bad\.txt is no UTF-8 at byte {before} .*iconv"):
        list(read(path))


@pytest.mark.parametrize("read", [read_blocks, read_lines])
def test_a_character_cut_at_the_end_is_told(tmp_path, read):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"abc" + "ö".encode()[:1])
    with pytest.raises(BadInput, match="at byte 3"):
        list(read(path))


def test_a_binary_file_is_told_with_the_offset_of_its_first_nul(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("öö".encode() + b"\0rest")
    with pytest.raises(BadInput, match="NUL byte at 4.*binary"):  # noqa: RUF043
        blocks(path)


def test_an_empty_file_is_told(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(BadInput, match=r"a\.txt is empty"):
        blocks(tmp_path / "a.txt")


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[:200] + b"\0" * 50 + b[250:]])
def test_a_cut_or_damaged_gzip_is_told(tmp_path, damage):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(damage(gzip.compress("".join(map(str, range(9000))).encode())))
    with pytest.raises(BadInput, match=r"damaged or cut gzip.*gzip -t"):
        blocks(path)


def test_a_missing_path_names_its_neighbour(tmp_path):
    (tmp_path / "corpus.txt").write_text("a")
    with pytest.raises(BadInput, match=r"corpsu.txt does not exist. Did you mean 'corpus.txt'"):
        find_files(tmp_path / "corpsu.txt")


def test_every_missing_path_is_listed(tmp_path):
    with pytest.raises(BadInput, match=r"(?s)one\.txt.*two\.txt.*\*\.csv matches no file"):
        find_files([tmp_path / "one.txt", tmp_path / "two.txt", f"{tmp_path}/*.csv"])


def test_folders_globs_and_lists_find_files_in_one_order(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.jsonl", "deep/c.csv.gz", "picture.png", ".hidden.txt"):
        (tmp_path / name).write_text("x")
    names = [p.name for p in find_files(tmp_path)]
    assert names == ["a.jsonl", "b.txt", "c.csv.gz"]
    assert [p.name for p in find_files(f"{tmp_path}/*.txt")] == ["b.txt"]
    assert [p.name for p in find_files([tmp_path / "b.txt", tmp_path])] == [
        "b.txt", "a.jsonl", "c.csv.gz",
    ]  # fmt: skip


def test_a_folder_without_texts_is_told(tmp_path):
    with pytest.raises(BadInput, match=r"holds no file ending in .*parquet"):
        find_files(tmp_path)


def test_content_is_the_same_elsewhere_and_other_after_a_change(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    assert content_of([tmp_path / "a.txt"]) == content_of([tmp_path / "b.txt"])
    (tmp_path / "b.txt").write_text("two")
    assert content_of([tmp_path / "a.txt"]) != content_of([tmp_path / "b.txt"])


ROWS = [{"text": 'one, "two"\nthree', "n": "1"}, {"text": "Größe", "n": "2"}]


def table(path):
    import csv
    import json

    import pyarrow as pa
    from pyarrow import parquet

    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(
                file, ["text", "n"], delimiter="\t" if "t" in path.suffix else ","
            )
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=1))
    else:
        path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, kind):
    path = table(tmp_path / f"rows.{kind}")
    assert [row["text"] for row in read_rows(path, ["text"])] == [row["text"] for row in ROWS]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_a_wrong_column_is_told_with_the_near_one(tmp_path, kind):
    path = table(tmp_path / f"rows.{kind}")
    with pytest.raises(BadInput, match=r"no column 'texts'. Did you mean 'text'\? There are: text"):
        list(read_rows(path, ["texts"]))


def test_a_broken_json_line_is_told_with_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(BadInput, match=r"a\.jsonl, line 2: no JSON"):
        list(read_rows(path, ["text"]))


def test_a_file_that_only_ends_in_parquet_is_told(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(BadInput, match="no readable parquet"):
        list(read_rows(tmp_path / "a.parquet", ["text"]))


def test_a_csv_text_longer_than_the_default_limit_is_read(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"' + "a" * 300_000 + '"\n')
    assert len(next(iter(read_rows(tmp_path / "a.csv", ["text"])))["text"]) == 300_000


def test_a_line_of_100_megabytes_streams_in_little_memory(tmp_path):
    path = tmp_path / "long.txt"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"word " * 200_000)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from compress.data.pieces import cut_pieces\n"
        "from compress.data.read_files import read_blocks\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "total = sum(len(p) for p in cut_pieces(read_blocks(Path(sys.argv[1]))))\n"
        "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    total, kilobytes = map(int, done.stdout.split())
    assert total == 100_000_000
    assert kilobytes < 30_000


def test_parquet_text_that_is_no_utf8_is_told(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    text = pyarrow.array([b"\xb0 broken"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"a\.parquet"):
        list(read_rows(tmp_path / "a.parquet", ["text"]))
