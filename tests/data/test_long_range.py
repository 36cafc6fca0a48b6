"""Rows with a class: the class is right, rows do not depend on their batch, and splits share nothing."""

import math
import statistics

import numpy as np
import pytest

from exlstm.data.long_range import CLASS_TASKS, class_batch, images, listops, pathfinder, stdlib

LENGTHS = {
    "listops": (100, 900), "listops_small": (10, 40), "pathfinder_own": (256, 256), "digits": (64, 64),
    "stdlib_package": (50, 60), "stdlib_match": (90, 101),
}  # fmt: skip


def rows_of(name, split="test", *, first=0, size=24, seed=0):
    low, high = LENGTHS[name]
    return class_batch(CLASS_TASKS[name], seed=seed, split=split, first=first, size=size, low=low, high=high)


@pytest.mark.parametrize("name", LENGTHS)
def test_rows_are_what_the_task_says_whatever_their_batch(name):
    task, (low, high) = CLASS_TASKS[name], LENGTHS[name]
    batch = rows_of(name)
    assert batch.classes_B.min() >= 0
    assert batch.classes_B.max() < task.classes
    assert len(set(batch.classes_B.tolist())) > 1
    for row, length in zip(batch.inputs_BT, batch.lengths_B.tolist(), strict=True):
        assert low <= length <= high
        assert row[:length].min() > 0
        assert row.max() < task.vocab_size
        assert not row[length:].any()
    late = rows_of(name, first=20, size=4)
    for got, want in zip(late, batch, strict=True):
        wanted = want[20:]
        assert got.tolist() == (wanted[:, : got.shape[1]] if got.ndim == 2 else wanted).tolist()
    for other in (rows_of(name, seed=1), rows_of(name, split="validation")):
        assert other.inputs_BT.shape != batch.inputs_BT.shape or not other.inputs_BT.equal(batch.inputs_BT)
    assert task.chance == 1 / task.classes


WORDS = [*(str(digit) for digit in range(10)), "[MIN", "[MAX", "[MED", "[SM", "]"]


def written(tokens):
    """The expression as LRA writes it."""
    return " ".join(WORDS[token - 1] for token in tokens)


def plain_value(text):
    """The value by Python's own parser."""
    names = {"[MIN": "min((", "[MAX": "max((", "[MED": "med((", "[SM": "sm(("}
    source = "".join(names.get(word, ")) ," if word == "]" else f"{word},") for word in text.split()).replace(
        ")) ,", ")),"
    )
    known = {"min": min, "max": max, "med": lambda values: int(statistics.median(values)), "sm": lambda v: sum(v) % 10}
    return eval(source.rstrip(","), known)


def test_the_class_of_listops_is_the_value():
    assert plain_value("[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]") == 5
    for name in ("listops", "listops_small"):
        tokens_BT, lengths_B, classes_B = rows_of(name)
        for row, length, label in zip(tokens_BT.tolist(), lengths_B.tolist(), classes_B.tolist(), strict=True):
            assert plain_value(written(row[:length])) == label


def test_trees_follow_the_grammar():
    deepest, widest, nodes, leaves = 0, 0, 0, 0
    random = np.random.default_rng(0)
    for _ in range(3000):
        depth, open_lists = 0, []
        tokens = list(listops._tree(random, 9, 10, 10**6))
        for token in tokens:
            word = WORDS[token - 1]
            if open_lists and word != "]":
                open_lists[-1] += 1
            if word.startswith("["):
                open_lists.append(0)
                depth = len(open_lists)
                deepest, nodes = max(deepest, depth), nodes + 1
            elif word == "]":
                widest = max(widest, count := open_lists.pop())
                assert count >= 2
            else:
                nodes, leaves = nodes + (len(open_lists) < 9), leaves + (len(open_lists) < 9)
        assert not open_lists
    assert (deepest, widest) == (9, 10)
    assert leaves / nodes == pytest.approx(listops.DIGIT, abs=4 * math.sqrt(0.19 / nodes))
    with pytest.raises(ValueError, match="has no end"):
        listops.value_of([11, 1, 2])


def test_lengths_that_no_tree_has_are_refused(monkeypatch):
    monkeypatch.setattr(listops, "_TRIES", 50)
    with pytest.raises(ValueError, match=r"^trees of 2 to 2 tokens are too rare; ask"):
        class_batch(CLASS_TASKS["listops"], seed=0, split="test", first=0, size=1, low=2, high=2)


def connected(image):
    """Whether the brightest spots are one, or two on one island of light: a flood fill."""
    bright = image >= 8
    marks = islands(bright)
    lit = islands(image >= 3)
    return len({next(number for number, island in enumerate(lit) if mark <= island) for mark in marks}) == 1


def islands(on):
    left, found = {tuple(place) for place in np.argwhere(on)}, []
    while left:
        queue = [left.pop()]
        island = set(queue)
        while queue:
            y, x = queue.pop()
            for place in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if place in left:
                    left.remove(place)
                    island.add(place)
                    queue.append(place)
        found.append(island)
    return found


def test_marks_are_on_one_path_where_the_class_says_so(monkeypatch):
    monkeypatch.setattr(pathfinder, "_GAP", 0.2)  # paths without gaps are islands
    monkeypatch.setattr(pathfinder, "_APART", 3.2)
    task = CLASS_TASKS["pathfinder_own"]
    tokens_BT, _, classes_B = class_batch(task, seed=0, split="test", first=0, size=24, low=900, high=900)
    images_BHW = tokens_BT.view(-1, 30, 30).numpy()
    assert [connected(image) for image in images_BHW] == [bool(label) for label in classes_B]


@pytest.mark.parametrize("bend", [0.45, 1.4])  # a path that bends little comes back in large images only
def test_paths_are_of_dashes_that_bend_a_little_and_keep_apart(monkeypatch, bend):
    """Dashes and gaps of one length; inside the image; no two paths, and no two far dashes of one, come close."""
    monkeypatch.setattr(pathfinder, "_BEND", bend)
    for seed in range(20):
        paths = pathfinder._paths(np.random.default_rng(seed), 30, [10, 10, 2])
        for number, path in enumerate(paths):
            dashes, gaps = path[:, 1] - path[:, 0], path[1:, 0] - path[:-1, 1]
            np.testing.assert_allclose(np.linalg.norm(dashes, axis=-1), pathfinder._DASH)
            np.testing.assert_allclose(gaps, dashes[:-1] * pathfinder._GAP / pathfinder._DASH)
            bends = np.diff(np.unwrap(np.arctan2(dashes[:, 1], dashes[:, 0])))
            assert (np.abs(bends) <= pathfinder._BEND).all()
            assert path.min() >= 1
            assert path.max() <= 28
            others = [path[k + 3 :] for k in range(len(path) - 3)] + paths[number + 1 :]
            mine = [path[k] for k in range(len(path) - 3)] + [path] * len(paths[number + 1 :])
            for one, other in zip(mine, others, strict=True):
                between = one.reshape(-1, 1, 2) - other.reshape(1, -1, 2)
                assert np.linalg.norm(between, axis=-1).min() >= pathfinder._APART


def test_a_picture_is_a_square():
    for low, high in ((250, 250), (200, 256), (64, 64)):
        with pytest.raises(ValueError, match="ask for 256 or 1024"):
            class_batch(CLASS_TASKS["pathfinder_own"], seed=0, split="test", first=0, size=1, low=low, high=high)
    with pytest.raises(ValueError, match="images have 64 pixels, not 64 to 65"):
        class_batch(CLASS_TASKS["digits"], seed=0, split="test", first=0, size=1, low=64, high=65)


def test_images_and_files_are_in_one_split_each():
    parts = [{row.tobytes() for row in pixels} for pixels, _ in images.digit_images().values()]
    assert [len(part) > 200 for part in parts] == [True] * 3
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    names = [{document.name for document in files} for files in stdlib._files().values()]
    assert not names[0] & names[1] | names[0] & names[2] | names[1] & names[2]
    assert len(stdlib.packages()) == stdlib.CLASSES


def test_windows_are_from_the_package_and_from_the_files_that_the_class_says():
    tokens_BT, lengths_B, classes_B = rows_of("stdlib_package", split="train")
    texts = {split: {d.name: d.data for d in files} for split, files in stdlib._files().items()}

    def owners(window, split):
        return {name for name, data in texts[split].items() if bytes(token - 1 for token in window) in data}

    for row, length, label in zip(tokens_BT.tolist(), lengths_B.tolist(), classes_B.tolist(), strict=True):
        assert any(name.startswith(f"{stdlib.packages()[label]}/") for name in owners(row[:length], "train"))
    tokens_BT, lengths_B, classes_B = rows_of("stdlib_match")
    for row, length, label in zip(tokens_BT.tolist(), lengths_B.tolist(), classes_B.tolist(), strict=True):
        border = row.index(257)
        first, second = owners(row[:border], "test"), owners(row[border + 1 : length], "test")
        assert first
        assert second
        assert not label or first & second
        assert label or first != second or len(first) > 1


def test_cifar_is_asked_for_and_read_as_torchvision_leaves_it(tmp_path, monkeypatch):
    import pickle

    task = CLASS_TASKS["cifar"]
    monkeypatch.chdir(tmp_path)
    images._cifar.cache_clear()
    with pytest.raises(ValueError, match=r"^there is no folder data/cifar-10-batches-py; put CIFAR-10 there"):
        class_batch(task, seed=0, split="test", first=0, size=1, low=1024, high=1024)
    folder = tmp_path / images.CIFAR
    folder.mkdir(parents=True)
    colors = np.zeros((3, 3072), dtype=np.uint8)
    colors[0], colors[1, :1024] = 255, 255  # white, and red
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps({b"data": colors, b"labels": [4, 5, 6]}))
    monkeypatch.setattr(images, "_VALIDATION", 3)
    tokens_BT, _, classes_B = class_batch(task, seed=0, split="test", first=0, size=20, low=1024, high=1024)
    found = {label: set(row) for row, label in zip(tokens_BT.tolist(), classes_B.tolist(), strict=True)}
    assert found == {4: {256}, 5: {77}, 6: {1}}
    assert [len(classes) for _, classes in images._cifar().values()] == [12, 3, 3]
    images._cifar.cache_clear()
