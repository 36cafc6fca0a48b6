"""The store of states: namespaces, quotas, tiers, expiry, files that survive a kill; other files are left alone."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import torch

from exlstm.mixers.state import leaves
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.states.content import StateMismatch
from exlstm.serve.state_store import NotExportable, StateGone, StateStore, StoreFull

HUGE = 1 << 40


class Clock:
    """Seconds that a test moves on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def build(seed=0, pattern="ms"):
    torch.manual_seed(seed)
    return LM(lm_from_pattern(pattern, vocab_size=23, width=16, heads=2)).eval()


MODEL = build()
SNAPSHOTS = [MODEL.read([token, token + 1]) for token in range(12)]
SIZE = SNAPSHOTS[0].nbytes


def store_of(model=MODEL, **options):
    options = {"memory_bytes": HUGE, "disk_bytes": HUGE, "folder": None, "max_states": 10_000} | options
    return StateStore(model, **{"idle_seconds": 86_400.0, "tokenizer_digest": None, "clock": Clock()} | options)


def assert_equal(got, want):
    assert got.counts == want.counts
    held = [leaves((*each.state, each.logits_BC, each.seen_BC)) for each in (got, want)]
    for x, y in zip(*held, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def test_what_is_put_can_be_got_and_asked_about():
    store = store_of(wall_clock=lambda: 5000.0)
    first = store.put("a", SNAPSHOTS[0], excerpt="x" * 1000, finish_reason="stop")
    second = store.put("a", SNAPSHOTS[1], parent=first.id, pinned=True)
    assert store.get("a", first.id).counts == (2,)
    assert_equal(store.get("a", second.id), SNAPSHOTS[1])
    assert first.id.startswith("st_")
    assert len(first.id) == 35
    assert first.id != second.id
    assert (first.tokens, first.bytes, first.created, first.expires) == (2, SIZE, 5000.0, 91_400.0)
    assert (first.excerpt, first.finish_reason, first.where, first.children) == ("x" * 500, "stop", "memory", 0)
    assert (second.parent, second.pinned, second.expires) == (first.id, True, None)
    assert store.info("a", first.id).children == 1
    store.delete("a", first.id)
    assert [each.id for each in store.list("a")] == [second.id]
    with pytest.raises(StateGone) as caught:
        store.get("a", first.id)
    assert caught.value.expired


def test_the_states_of_others_are_as_unknown_as_any():
    store = store_of()
    info = store.put("a", SNAPSHOTS[0])
    unknown = "st_" + "0" * 32
    for call in (store.get, store.info, store.delete, store.content, store.pin):
        messages = []
        for state in (info.id, unknown, "../../etc/passwd", ""):
            with pytest.raises(StateGone) as caught:
                call("b", state)
            messages.append((str(caught.value).replace(state, ""), caught.value.expired))
        assert messages[0] == messages[1]
    with pytest.raises(StateGone):
        store.put("b", SNAPSHOTS[1], parent=info.id)
    store.delete("a", info.id)
    with pytest.raises(StateGone) as caught:
        store.info("b", info.id)
    assert not caught.value.expired, "it was never known to this owner"
    assert store.list("b") == []


def test_preloaded_states_are_everyone_s_to_read():
    store = store_of(memory_bytes=3 * SIZE, idle_seconds=5.0)
    store.preload("persona", SNAPSHOTS[0])
    store.preload("open", SNAPSHOTS[1], exportable=True)
    for owner in "ab":
        assert_equal(store.get(owner, "persona"), SNAPSHOTS[0])
        assert [each.id for each in store.list(owner)] == ["persona", "open"]
        with pytest.raises(ValueError, match="cannot be deleted"):
            store.delete(owner, "persona")
    store._clock.now += 100
    assert store.info("a", "persona").expires is None
    child = store.put("a", SNAPSHOTS[2], parent="persona")
    assert (store.info("a", "persona").children, store.info("b", "persona").children) == (1, 0)
    grandchild = store.put("a", SNAPSHOTS[3], parent=child.id)
    store.delete("a", child.id)
    late = store.put("a", SNAPSHOTS[4], parent=child.id)
    for state in ("persona", grandchild.id, late.id):
        with pytest.raises(NotExportable):
            store.content("a", state)
    assert store.content("a", "open")
    assert store.content("a", store.put("a", SNAPSHOTS[5], parent="open").id)
    for name in ("st_" + "0" * 32, "", "../x", "a/b", "x" * 65, ".x", "persona"):
        with pytest.raises(ValueError, match=r"choose another|cannot be the name"):
            store.preload(name, SNAPSHOTS[0])


def test_a_parent_is_remembered_for_an_hour():
    store = store_of(idle_seconds=10.0)
    info = store.put("a", SNAPSHOTS[0])
    store._clock.now += 9
    store.get("a", info.id)
    store._clock.now += 9
    assert store.info("a", info.id).id == info.id
    store._clock.now += 1
    with pytest.raises(StateGone) as caught:
        store.info("a", info.id)
    assert caught.value.expired
    assert store.stats().expired == 1
    store._clock.now += 3599
    store.put("a", SNAPSHOTS[1], parent=info.id)
    store._clock.now += 2
    with pytest.raises(StateGone) as caught:
        store.put("a", SNAPSHOTS[1], parent=info.id)
    assert not caught.value.expired


def test_memory_then_disk_then_gone(tmp_path):
    store = store_of(memory_bytes=2 * SIZE, max_states=4, folder=tmp_path)
    ids = [store.put("a", snapshot).id for snapshot in SNAPSHOTS[:4]]
    store.settled()
    assert [each.where for each in store.list("a")] == ["disk", "disk", "memory", "memory"]
    assert_equal(store.get("a", ids[0]), SNAPSHOTS[0])
    assert {each.id: each.where for each in store.list("a")} == dict(
        zip(ids, ["memory", "disk", "disk", "memory"], strict=True)
    )
    store.put("a", SNAPSHOTS[4])
    store.settled()
    with pytest.raises(StateGone) as caught:
        store.get("a", ids[1])
    assert caught.value.expired
    assert len(os.listdir(tmp_path)) == 4
    stats = store.stats()
    assert (stats.states, stats.in_memory, stats.memory_bytes, stats.evicted, stats.restored) == (4, 2, 2 * SIZE, 1, 1)
    assert stats.disk_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_the_disk_has_a_bound_of_its_own(tmp_path):
    store = store_of(folder=tmp_path / "all")
    store.put("a", SNAPSHOTS[0])
    store.settled()
    size = store.stats().disk_bytes
    store = store_of(memory_bytes=2 * SIZE, disk_bytes=4 * size + size // 2, folder=tmp_path / "few")
    ids = [store.put("a", snapshot).id for snapshot in SNAPSHOTS[:6]]
    store.settled()
    assert [each.id for each in store.list("a")] == ids[2:]
    assert sorted(os.listdir(tmp_path / "few")) == sorted(ids[2:])


def test_an_owner_has_a_quarter_where_there_are_others():
    store = store_of(memory_bytes=8 * SIZE)
    alone = [store.put("a", snapshot).id for snapshot in SNAPSHOTS[:8]]
    other = [store.put("b", snapshot).id for snapshot in SNAPSHOTS[:3]]
    assert [each.id for each in store.list("b")] == other[1:]
    assert [each.id for each in store.list("a")] == alone[2:], "those of the owner with the most have gone"
    last = store.put("a", SNAPSHOTS[8]).id
    assert [each.id for each in store.list("a")] == [alone[-1], last]
    with pytest.raises(StoreFull, match="no room for"):
        store_of(memory_bytes=SIZE - 1).put("a", SNAPSHOTS[0])


def test_pinned_states_stay():
    store = store_of(memory_bytes=4 * SIZE, idle_seconds=10.0)
    pinned = [store.put("a", snapshot, pinned=True).id for snapshot in SNAPSHOTS[:2]]
    for snapshot in SNAPSHOTS[2:6]:
        free = store.put("a", snapshot).id
    assert len(store.list("a")) == 4
    assert {*pinned, free} <= {each.id for each in store.list("a")}
    before = store.stats()
    with pytest.raises(StoreFull, match="half of what this owner may keep is pinned"):
        store.put("a", SNAPSHOTS[0], pinned=True)
    assert store.stats() == before
    store._clock.now += 20
    assert {each.id for each in store.list("a")} == set(pinned)


@pytest.mark.parametrize("bounds", [{"memory_bytes": 16 * SIZE}, {"max_states": 16}])
def test_an_owner_cannot_pin_the_room_of_others(bounds):
    store = store_of(**bounds)
    for _ in range(20):
        with suppress(StoreFull):
            store.put("a", SNAPSHOTS[0], pinned=True)
    assert len(store.list("a")) == 8
    for owner in "bcd":
        for _ in range(6):
            store.put(owner, SNAPSHOTS[1])
    assert len(store.list("a")) == 8
    assert all(store.list(owner) for owner in "bcd")
    with pytest.raises(StoreFull, match="pinned or on their way"):
        store.put("a", SNAPSHOTS[2])


def test_pins_are_counted_and_bounded():
    store = store_of(memory_bytes=4 * SIZE, idle_seconds=10.0)
    first, second, third = (store.put("a", snapshot).id for snapshot in SNAPSHOTS[:3])
    assert [store.pin("a", first), store.pin("a", first), store.pin("a", second)] == [True, True, True]
    assert not store.pin("a", third), "half of the share is pinned"
    store.unpin("a", first)
    store._clock.now += 20
    assert {each.id for each in store.list("a")} == {first, second}
    store.unpin("a", first)
    assert {each.id for each in store.list("a")} == {second}
    store.unpin("a", first)
    assert store.pin("a", store.put("a", SNAPSHOTS[3]).id)


def test_reserved_memory_is_for_what_is_received():
    store = store_of(memory_bytes=2 * SIZE + SIZE // 2)
    data = _content(0)
    with store.reserve("a", SIZE):
        store.put("a", SNAPSHOTS[1])
        with pytest.raises(StoreFull), store.reserve("a", SIZE * 3):
            pass
        info = store.add_content("a", data)
        assert store.stats().memory_bytes == 2 * SIZE, "the reservation was taken"
    assert store.stats().memory_bytes == 2 * SIZE
    assert_equal(store.get("a", info.id), SNAPSHOTS[0])
    with pytest.raises(RuntimeError, match="connection"), store.reserve("a", SIZE):
        raise RuntimeError("connection lost")
    assert store.stats().memory_bytes == SIZE
    with pytest.raises(ValueError, match="cannot be reserved"), store.reserve("a", -1):
        pass


def _content(n, **options):
    store = store_of(**options)
    return store.content("a", store.put("a", SNAPSHOTS[n]).id)


def test_content_goes_out_and_comes_in(tmp_path):
    store = store_of(folder=tmp_path, tokenizer_digest="t")
    info = store.put("a", SNAPSHOTS[0], excerpt="a secret", finish_reason="stop")
    exact, rounded = store.content("a", info.id), store.content("a", info.id, torch.bfloat16)
    assert b"secret" not in exact
    assert b"about" not in exact
    assert len(rounded) < 0.7 * len(exact)
    sister = store_of(tokenizer_digest="t")
    found = sister.add_content("b", exact)
    assert_equal(sister.get("b", found.id), SNAPSHOTS[0])
    assert (found.parent, found.exportable) == (None, True)
    assert sister.content("b", found.id) == exact
    with pytest.raises(StateMismatch, match="tokenizer"):
        store_of(tokenizer_digest="u").add_content("a", exact)
    with pytest.raises(StateMismatch, match="another model"):
        store_of(build(seed=1)).add_content("a", exact)
    with pytest.raises(ValueError, match="cannot be read"):
        sister.add_content("a", exact[:-1])
    for call in (store.put, lambda owner, snapshot: store.preload("two", snapshot)):
        with pytest.raises(ValueError, match="2 rows"):
            call("a", SNAPSHOTS[0].fork(2))
    with pytest.raises(ValueError, match="another model"):
        store.put("a", build(seed=1).read([1]))


def test_a_view_of_a_batch_is_kept_without_the_batch():
    batch = SNAPSHOTS[0].fork(6)
    views = type(batch)(
        state=tuple(type(part)(*part) for part in batch.rows([1]).state), logits_BC=batch.logits_BC[1:2],
        seen_BC=batch.seen_BC[1:2], counts=(2,), weights=batch.weights,
    )  # fmt: skip
    store = store_of()
    found = store.get("a", store.put("a", views).id)
    assert found.logits_BC.untyped_storage().nbytes() == found.logits_BC.nbytes


def restarted(folder, model=MODEL, **options):
    store = store_of(model, folder=folder, **options)
    store.load_folder()
    return store


def test_a_restart_changes_nothing(tmp_path):
    store = store_of(folder=tmp_path, tokenizer_digest="t")
    store.preload("persona", SNAPSHOTS[0])
    first = store.put("a", SNAPSHOTS[1], parent="persona", excerpt="Grüße \ud800 \U0001f600", finish_reason="stop")
    second = store.put("a", SNAPSHOTS[2], parent=first.id, pinned=True)
    third = store.put("b", SNAPSHOTS[3])
    store.delete("b", third.id)
    before = {each.id: each for each in (store.info("a", first.id), store.info("a", second.id))}
    store.close()
    store = restarted(tmp_path, tokenizer_digest="t")
    assert store.list("b") == []
    for each, snapshot in zip(store.list("a"), SNAPSHOTS[1:3], strict=True):
        want = vars(before[each.id]) | {"where": "disk", "expires": None}
        assert vars(each) | {"expires": None} == want
        assert_equal(store.get("a", each.id), snapshot)
    with pytest.raises(NotExportable):
        store.content("a", second.id)
    for other, options in ((build(seed=1), {"tokenizer_digest": "t"}), (MODEL, {"tokenizer_digest": "u"})):
        stats = restarted(tmp_path, other, **options).stats()
        assert (stats.states, stats.foreign, stats.damaged) == (0, 2, 0)
    assert len(os.listdir(tmp_path)) == 2


def test_the_folder_is_private_and_swept(tmp_path):
    folder = tmp_path / "states"
    old = os.umask(0)
    try:
        store = store_of(folder=folder)
        info = store.put("a", SNAPSHOTS[0])
        store.settled()
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / info.id).stat().st_mode) == 0o600
    (folder / ".saving-x").mkdir()
    (folder / ".saving-x" / info.id).write_text("half")
    (folder / "notes.txt").write_text("of the operator")
    restarted(folder)
    assert sorted(os.listdir(folder)) == ["notes.txt", info.id]
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be the server's folder"):
        store_of(folder=tmp_path / "file")


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "empty", "renamed", "link", "pipe", "folder", "note"])
def test_damaged_files_are_ignored(tmp_path, damage):
    store = store_of(folder=tmp_path / "states")
    bad, good = store.put("a", SNAPSHOTS[0]).id, store.put("a", SNAPSHOTS[1]).id
    store.close()
    file = tmp_path / "states" / bad
    data = file.read_bytes()
    if damage in ("link", "pipe", "folder", "renamed"):
        file.rename(tmp_path / "away")
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "flipped":
        file.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    elif damage == "header":
        file.write_bytes(data[:8] + b"[" * (len(data) - 8))
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "note":
        file.write_bytes(data.replace(b'\\"owner\\": \\"a\\"', b'\\"owner\\": \\"b'))
    elif damage == "renamed":
        (tmp_path / "away").rename(tmp_path / "states" / ("st_" + "0" * 32))
    elif damage == "link":
        file.symlink_to(tmp_path / "away")
    elif damage == "pipe":
        os.mkfifo(file)
    else:
        file.mkdir()
    store = restarted(tmp_path / "states")
    assert_equal(store.get("a", good), SNAPSHOTS[1])
    with pytest.raises(StateGone):
        store.get("a", bad)
    assert (store.stats().states, store.stats().damaged) == (1, 1)


def test_a_link_that_comes_later_is_not_followed(tmp_path):
    store = store_of(folder=tmp_path / "states", memory_bytes=SIZE)
    first, _ = (store.put("a", snapshot).id for snapshot in SNAPSHOTS[:2])
    store.settled()
    (tmp_path / "states" / first).rename(tmp_path / "away")
    (tmp_path / "states" / first).symlink_to(tmp_path / "away")
    with pytest.raises(StateGone):
        store.get("a", first)
    store.settled()
    assert (tmp_path / "away").exists()


def test_a_full_disk_loses_nothing_in_memory(tmp_path, monkeypatch):
    store = store_of(folder=tmp_path)

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        info = store.put("a", SNAPSHOTS[0])
        store.settled()
    assert (store.stats().failed_writes, store.stats().unwritten, store.stats().disk_bytes) == (1, 1, 0)
    assert_equal(store.get("a", info.id), SNAPSHOTS[0])
    assert os.listdir(tmp_path) == []
    store.flush()
    assert os.listdir(tmp_path) == [info.id]
    assert_equal(restarted(tmp_path).get("a", info.id), SNAPSHOTS[0])


@pytest.mark.breadth(1)
@pytest.mark.parametrize("most", [200, 10_000])
def test_so_many_ids_and_no_more(most):
    store = store_of(max_states=most)
    first = store.put("a", SNAPSHOTS[0]).id
    for _ in range(most):
        last = store.put("a", SNAPSHOTS[1]).id
    assert store.stats().states == most
    assert store.info("a", last).id == last
    with pytest.raises(StateGone):
        store.info("a", first)
    for _ in range(most + 10):
        store.delete("a", store.put("a", SNAPSHOTS[1]).id)
    assert len(store._room.owners["a"].ended) == most


def test_threads_agree_in_the_end(tmp_path):
    store = store_of(folder=tmp_path, memory_bytes=9 * SIZE, max_states=40)

    def work(number):
        owner, mine, unknown = "ab"[number % 2], {}, 0
        for turn in range(12):
            n = (number + turn) % len(SNAPSHOTS)
            mine[store.put(owner, SNAPSHOTS[n]).id] = n
            for state, n in list(mine.items())[-3:]:
                try:
                    assert_equal(store.get(owner, state), SNAPSHOTS[n])
                except StateGone as error:
                    unknown += not error.expired
                    del mine[state]
            if turn % 4 == 3 and mine:
                with suppress(StateGone):
                    store.delete(owner, next(iter(mine)))
        return unknown

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0] * 4, "what is evicted was known"
    store.flush()
    stats, listed = store.stats(), [*store.list("a"), *store.list("b")]
    assert stats.states == len(listed) <= 40
    assert stats.memory_bytes == SIZE * stats.in_memory <= 9 * SIZE
    assert stats.disk_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sorted(each.id for each in listed) == sorted(os.listdir(tmp_path))
