"""Small files of real-looking text that the data tests share."""

import json
import random
from pathlib import Path

LINE = "the a tree river stone walks sings under over green old while for in x = 1 def"
WORDS = LINE.split(" ")


def story(*, words: int, seed: int = 0) -> str:
    """Lines of eight words."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    return "\n".join(" ".join(chosen[i : i + 8]) for i in range(0, words, 8)) + "\n"


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def story_rows(count: int = 60) -> list[dict]:
    return [{"text": story(words=60, seed=seed)} for seed in range(count)]
