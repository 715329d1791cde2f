"""A cache answers as its teacher did, survives a kill, and is refused when it is not its own."""

import json
import math

import pytest
import torch

from compress.contract import Want
from compress.errors import BadInput
from compress.teachers import cache_shards
from compress.teachers.cached import CachedTeacher, Identity, write_cache
from tests.teachers.toys import ToyTeacher, rows

IDENTITY = Identity(teacher="t", tokenizer="k", data="d")
LOGITS = Want(logits=True)


def split(batch, size):
    parts = zip(*(tensor.split(size) for tensor in batch.values()), strict=True)
    return [dict(zip(batch, part, strict=True)) for part in parts]


def write(teacher, batch, path, **settings):
    settings = {"identity": IDENTITY, "top_k": 6, "rows_per_shard": 4, **settings}
    return write_cache(teacher, split(batch, 2), path, **settings)


def test_cached_entries_are_the_teachers_likeliest_tokens(tmp_path):
    teacher, batch = ToyTeacher(), rows(10)
    write(teacher, batch, tmp_path)
    signal = CachedTeacher(tmp_path).signal(batch, LOGITS)
    values, tokens = teacher.log_probs(batch).topk(6)
    assert torch.equal(signal.tokens_BLK, tokens) and not signal.sampled
    assert torch.allclose(signal.log_probs_BLK, values, rtol=1e-3, atol=1e-6)


def test_order_and_batching_do_not_matter(tmp_path):
    teacher, batch = ToyTeacher(), rows(10)
    write(teacher, batch, tmp_path)
    cache = CachedTeacher(tmp_path)
    whole = cache.signal(batch, LOGITS)
    shuffled = {"input_ids": batch["input_ids"][[7, 0, 3]]}
    assert torch.equal(cache.signal(shuffled, LOGITS).tokens_BLK, whole.tokens_BLK[[7, 0, 3]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out_and_put_back(tmp_path, side):
    teacher, batch = ToyTeacher(), rows(4)
    write(teacher, batch, tmp_path)
    cache = CachedTeacher(tmp_path)
    widths = (3, 0) if side == "left" else (0, 3)
    padded = {"input_ids": torch.nn.functional.pad(batch["input_ids"], widths)}
    ones = torch.ones_like(batch["input_ids"])
    padded["attention_mask"] = torch.nn.functional.pad(ones, widths)
    found = cache.signal(padded, LOGITS).tokens_BLK
    used = padded["attention_mask"].bool()
    assert torch.equal(found[used], cache.signal(batch, LOGITS).tokens_BLK.flatten(0, 1))


def test_large_vocabularies_keep_their_high_tokens(tmp_path):
    teacher, batch = ToyTeacher(vocab_size=70_000), rows(2, vocab_size=70_000)
    manifest = write(teacher, batch, tmp_path, top_k=20)
    found = CachedTeacher(tmp_path).signal(batch, LOGITS).tokens_BLK
    assert found.max() > 1 << 16
    assert torch.equal(found, teacher.log_probs(batch).topk(20).indices)
    assert manifest.bytes_per_token <= 120


def test_draws_estimate_the_whole_distribution(tmp_path):
    teacher, batch = ToyTeacher(vocab_size=12, hidden=2), rows(60, vocab_size=12)
    write(teacher, batch, tmp_path, draws=50)
    signal = CachedTeacher(tmp_path).signal(batch, LOGITS)
    assert signal.sampled
    shares = signal.log_probs_BLK.exp()
    assert torch.allclose(shares.sum(-1), torch.ones(60, 12))
    drawn = torch.zeros(60, 12, 12).scatter_add_(2, signal.tokens_BLK, shares).mean((0, 1))
    # 36,000 draws: a share's standard error is below 0.003
    assert torch.allclose(drawn, teacher.log_probs(batch).exp().mean((0, 1)), atol=0.012)


def test_draws_do_not_depend_on_the_batch(tmp_path):
    teacher, batch = ToyTeacher(), rows(8)
    write_cache(teacher, split(batch, 8), tmp_path / "a", identity=IDENTITY, draws=9)
    write_cache(teacher, split(batch, 3), tmp_path / "b", identity=IDENTITY, draws=9)
    a, b = (CachedTeacher(tmp_path / name).signal(batch, LOGITS) for name in "ab")
    assert torch.equal(a.tokens_BLK, b.tokens_BLK) and torch.equal(a.log_probs_BLK, b.log_probs_BLK)


def test_features_come_back_in_bfloat16(tmp_path):
    teacher, batch = ToyTeacher(), rows(6)
    write(teacher, batch, tmp_path, features=("layer",))
    found = CachedTeacher(tmp_path).signal(batch, Want(features=("layer",))).features["layer"]
    hidden = teacher.signal(batch, LOGITS).hidden_SLH
    assert torch.equal(found, hidden.bfloat16().float())


def test_a_feature_that_was_not_cached_is_refused(tmp_path):
    write(ToyTeacher(), rows(4), tmp_path)
    with pytest.raises(BadInput, match=r"holds no feature layer.1"):
        CachedTeacher(tmp_path).signal(rows(4), Want(features=("layer.1",)))


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_and_equals_an_unbroken_one(tmp_path):
    batch = rows(14)

    def until_killed():
        yield from split(batch, 2)[:5]
        raise Killed

    teacher = ToyTeacher()
    with pytest.raises(Killed):
        write_cache(
            teacher, until_killed(), tmp_path / "a", identity=IDENTITY, top_k=6, rows_per_shard=4
        )
    (tmp_path / "a" / "rank00000-000009.safetensors.tmp").write_bytes(b"half a shard")
    with pytest.raises(BadInput, match="not finished"):
        CachedTeacher(tmp_path / "a")
    teacher.rows_asked = 0
    write(teacher, batch, tmp_path / "a")
    assert teacher.rows_asked == 14 - 8  # two whole shards of four rows had survived
    write(ToyTeacher(), batch, tmp_path / "b")
    a, b = (CachedTeacher(tmp_path / name).signal(batch, LOGITS) for name in "ab")
    assert torch.equal(a.log_probs_BLK, b.log_probs_BLK)
    assert not list((tmp_path / "a").glob("*.tmp"))


def test_writing_a_finished_cache_again_asks_the_teacher_nothing(tmp_path):
    write(ToyTeacher(), rows(8), tmp_path)
    teacher = ToyTeacher()
    write(teacher, rows(8), tmp_path)
    assert teacher.rows_asked == 0


def test_a_teacher_of_several_ranks_is_asked_every_time(tmp_path):
    write(ToyTeacher(), rows(8), tmp_path)
    teacher = ToyTeacher()
    teacher.collective = True
    write(teacher, rows(8), tmp_path)
    assert teacher.rows_asked == 8


def test_a_lost_shard_is_written_again(tmp_path):
    write(ToyTeacher(), rows(12), tmp_path)
    (tmp_path / "rank00000-000001.safetensors").unlink()
    teacher = ToyTeacher()
    write(teacher, rows(12), tmp_path)
    assert teacher.rows_asked == 4
    assert len(CachedTeacher(tmp_path)) == 12


@pytest.mark.parametrize("part", ["teacher", "tokenizer", "data"])
def test_a_cache_of_something_else_is_refused(tmp_path, part):
    write(ToyTeacher(), rows(4), tmp_path)
    with pytest.raises(BadInput, match=rf"{part}\s+cached '.' , this run 'x'".replace("' ,", "',")):
        CachedTeacher(tmp_path, **{part: "x"})
    other = Identity(**{**IDENTITY.__dict__, part: "x"})
    with pytest.raises(BadInput, match="something else"):
        write(ToyTeacher(), rows(4), tmp_path, identity=other)


def test_going_on_with_other_settings_is_refused(tmp_path):
    write(ToyTeacher(), rows(4), tmp_path)
    with pytest.raises(BadInput, match="begun with top_k=6"):
        write(ToyTeacher(), rows(4), tmp_path, top_k=7)


def test_one_flipped_bit_is_refused_by_the_shards_name(tmp_path):
    write(ToyTeacher(), rows(12), tmp_path)
    shard = tmp_path / "rank00000-000001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    cache = CachedTeacher(tmp_path)
    with pytest.raises(BadInput, match=r"rank00000-000001.*SHA-256"):
        cache.signal(rows(12), LOGITS)


def test_a_flipped_bit_in_a_key_is_damage_not_absence(tmp_path):
    write(ToyTeacher(), rows(4), tmp_path)
    shard = tmp_path / "rank00000-000000.safetensors"
    content = bytearray(shard.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    begin = json.loads(content[8:header])["keys"]["data_offsets"][0]
    content[header + begin] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BadInput, match=r"rank00000-000000.*SHA-256"):
        CachedTeacher(tmp_path).signal(rows(4), LOGITS)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_cut_or_missing_shard_is_refused_at_once(tmp_path, damage):
    write(ToyTeacher(), rows(12), tmp_path)
    shard = tmp_path / "rank00000-000002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100]) if damage == "cut" else shard.unlink()
    with pytest.raises(BadInput, match="rank00000-000002"):
        CachedTeacher(tmp_path)


def test_a_damaged_manifest_is_refused(tmp_path):
    write(ToyTeacher(), rows(4), tmp_path)
    manifest = tmp_path / "manifest-00000.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(BadInput, match="damaged"):
        CachedTeacher(tmp_path)


def test_rows_that_were_never_cached_are_refused(tmp_path):
    write(ToyTeacher(), rows(4), tmp_path)
    with pytest.raises(BadInput, match="3 of 3 rows"):
        CachedTeacher(tmp_path).signal(rows(3, seed=1), LOGITS)


def test_two_ranks_make_one_cache(tmp_path):
    teacher, batch = ToyTeacher(), rows(8)
    halves = split(batch, 4)
    write(teacher, halves[0], tmp_path, rank=0, ranks=2)
    with pytest.raises(BadInput, match="2 ranks, 1"):
        CachedTeacher(tmp_path)
    write(teacher, halves[1], tmp_path, rank=1, ranks=2)
    found = CachedTeacher(tmp_path).signal(batch, LOGITS)
    assert torch.equal(found.tokens_BLK, teacher.log_probs(batch).topk(6).indices)


def test_bytes_a_token_are_within_the_promise(tmp_path):
    manifest = write(ToyTeacher(), rows(16, length=60), tmp_path, top_k=20)
    assert manifest.positions == 16 * 60
    assert 81 < manifest.bytes_per_token < 82
    assert math.isclose(CachedTeacher(tmp_path).bytes_per_token, manifest.bytes_per_token)
    assert json.loads((tmp_path / "manifest-00000.json").read_text())["finished"]


def test_a_cache_serves_forked_loader_workers(tmp_path):
    import pickle

    write(ToyTeacher(), rows(4), tmp_path)
    copy = pickle.loads(pickle.dumps(CachedTeacher(tmp_path)))
    assert copy.signal(rows(4), LOGITS).tokens_BLK.shape == (4, 12, 6)


def test_answers_ask_nothing_more_of_the_files_reader(tmp_path, monkeypatch):
    """It keeps 32 bytes of everything it is asked for: days of training would fill memory."""
    write(ToyTeacher(), rows(10), tmp_path)
    cache = CachedTeacher(tmp_path)
    monkeypatch.setattr(cache_shards, "safe_open", None)
    first = cache.signal(rows(10), LOGITS).tokens_BLK
    kept = first.clone()
    first.zero_()  # a copy: what is mapped stays as it is
    assert kept.any() and torch.equal(cache.signal(rows(10), LOGITS).tokens_BLK, kept)
