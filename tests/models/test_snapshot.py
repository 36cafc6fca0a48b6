"""Snapshots: prompts that were read, as values that are forked, joined, gone back to, and kept in files."""

import copy
import os
from dataclasses import replace

import pytest
import torch

from exlstm.mixers.state import leaves
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
from exlstm.models.states.file import load_state, save_state
from exlstm.models.states.fingerprint import fingerprint, weights_of
from exlstm.models.states.snapshot import Snapshot, snapshot_bytes

VOCABULARY = 23
LENGTHS = (1, 14, 7, 21)


def build(pattern, seed=0, **options):
    torch.manual_seed(seed)
    model = LM(replace(lm_from_pattern(pattern, vocab_size=VOCABULARY, width=16, heads=2), **options)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


@pytest.fixture(params=["ms", "M", "l", "mas"])
def model(request):
    return build(request.param)


def prompt_of(length, seed=0):
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [prompt_of(length, seed=length) for length in LENGTHS]
MORE = [[3], [1, 2, 3, 4, 5], [7, 7], [9]]


@torch.no_grad()
def assert_read(model, snapshot, texts):
    """Row for row what the model says of the whole text, also about what comes after one more token."""
    assert snapshot.counts == tuple(map(len, texts))
    after_B1C, _ = model(torch.ones(len(texts), 1, dtype=torch.long), snapshot.state)
    for row, text in enumerate(texts):
        torch.testing.assert_close(snapshot.logits_BC[row], model(torch.tensor([text]))[0][0, -1])
        torch.testing.assert_close(after_B1C[row, 0], model(torch.tensor([[*text, 1]]))[0][0, -1])
        assert snapshot.seen_BC[row].nonzero()[:, 0].tolist() == sorted(set(text))


def assert_equal(got, want):
    assert got.counts == want.counts
    held = [leaves((*each.state, each.logits_BC, each.seen_BC)) for each in (got, want)]
    for x, y in zip(*held, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@pytest.mark.breadth(4)
@pytest.mark.parametrize("chunk_len", [1, 3, 7, 50])
def test_ragged_prompts_in_chunks_then_more_of_each(model, chunk_len):
    snapshot = model.read(PROMPTS, chunk_len=chunk_len)
    assert_read(model, snapshot, PROMPTS)
    again = model.read(MORE, snapshot, chunk_len=chunk_len)
    assert_read(model, again, [prompt + more for prompt, more in zip(PROMPTS, MORE, strict=True)])
    assert_read(model, snapshot, PROMPTS)  # a value: one can go back to it


def test_fork_and_go_on_equals_separate_prompts(model):
    start = model.read(PROMPTS[1])
    forked = model.read(MORE, start.fork(4))
    assert_read(model, forked, [PROMPTS[1] + more for more in MORE])
    assert_read(model, start, [PROMPTS[1]])


def test_rows_are_taken_and_joined(model):
    whole, alone = model.read(PROMPTS), [model.read(prompt) for prompt in PROMPTS]
    joined = Snapshot.join([alone[2], whole.rows([3, 0]), alone[1]])
    assert len(joined) == 4
    assert_read(
        model, model.read(MORE, joined), [PROMPTS[n] + more for n, more in zip((2, 3, 0, 1), MORE, strict=True)]
    )
    taken = joined.rows([1, 1, 0])
    assert_read(model, taken, [PROMPTS[3], PROMPTS[3], PROMPTS[2]])
    assert taken.rows(2).nbytes == snapshot_bytes(model, len(PROMPTS[2])), "a row keeps what it needs, and no more"
    places = {x.untyped_storage().data_ptr() for x in leaves(joined.state) if x.numel()}
    assert not any(x.untyped_storage().data_ptr() in places for x in leaves(taken.state) if x.numel())


def test_only_a_chunk_is_in_flight_and_logits_are_made_once(monkeypatch):
    model, seen = build("ms"), []
    hidden, read_out = LM.hidden, LM.read_out
    monkeypatch.setattr(LM, "hidden", lambda self, x, *a, **o: seen.append(tuple(x.shape)) or hidden(self, x, *a, **o))
    monkeypatch.setattr(LM, "read_out", lambda self, x: seen.append(("out", *x.shape)) or read_out(self, x))
    model.read([prompt_of(70), prompt_of(9)], chunk_len=32)
    assert seen == [(2, 32), (1, 32), (1, 6), ("out", 2, 16)]


@pytest.mark.slow
def test_memory_does_not_grow_with_a_prompt_of_100_000_tokens():
    """In a process of its own, for the peak of one does not go down."""
    import subprocess
    import sys

    code = """
import resource, sys, torch
from exlstm.models.lm import LM
from exlstm.models.pattern import lm_from_pattern
torch.set_num_threads(1)
model = LM(lm_from_pattern("ms", vocab_size=5000, width=64, heads=2))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
prompt = [1, 2, 3, 4] * 25_000
model.read(prompt[:2000])
before = peak()
assert model.read(prompt).counts == (100_000,)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # the ids themselves are 0.8 MB; the logits of all tokens would be 2 GB, and hidden states 26 MB
    assert int(done.stdout) < 8e6


def test_dropout_is_off_and_the_model_is_left_as_it_was():
    model = build("ms", dropout=0.5)
    want = model.read(PROMPTS)
    model.train()
    assert_equal(model.read(PROMPTS), want)
    assert model.training
    assert not want.logits_BC.requires_grad
    with torch.inference_mode():
        assert not model.read(PROMPTS).logits_BC.is_inference()


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], {}, "the prompt has no tokens"),
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([1, VOCABULARY], {}, "the prompt has token 23, which is outside the vocabulary of 23"),
        ([[1], [2, -1]], {}, "prompt 1 has token -1"),
        ([1.5], {}, "pass a sequence of ids"),
        ([True, False], {}, "torch.bool"),
        (["a"], {}, "whole numbers"),
        ([2**70], {}, "whole numbers"),
        ([1], {"chunk_len": 0}, "chunk_len is 0"),
        (PROMPTS, {"after": 3}, "4 prompts to read after a snapshot of 3 rows"),
    ],
)
def test_what_cannot_be_read(prompts, options, words):
    model = build("m")
    if "after" in options:
        options = {"after": model.read([[1]] * options["after"])}
    with pytest.raises(ValueError, match=words):
        model.read(prompts, **options)


def test_rows_that_are_not_there():
    snapshot = build("m").read([[1], [2]])
    for wrong in (2, -1):
        with pytest.raises(ValueError, match=f"no row {wrong} in a snapshot of 2"):
            snapshot.rows(wrong)
    with pytest.raises(ValueError, match="2 rows cannot be forked"):
        snapshot.fork(3)
    with pytest.raises(ValueError, match="no rows"):
        snapshot.rows([])


# ------------------------------------------------------------------------------------------------------ fingerprints


def test_a_snapshot_belongs_to_weights():
    model = build("ms")
    snapshot, twin, other = model.read([1, 2]), copy.deepcopy(model), build("ms", seed=1)
    assert_equal(twin.read([3], snapshot), model.read([3], snapshot))
    with pytest.raises(ValueError, match="another model"):
        other.read([3], snapshot)
    with pytest.raises(ValueError, match="different models"):
        Snapshot.join([snapshot, other.read([1])])
    with torch.no_grad():
        model.head.weight.mul_(2)
    with pytest.raises(ValueError, match="weights that this one had before"):
        model.read([3], snapshot)


def test_fingerprints():
    model = build("ms")
    assert fingerprint(model) == fingerprint(build("ms"))
    others = [build("ms", seed=1), build("sm"), build("ms", logit_cap=3.0), build("ms").float()]
    changed = build("ms")
    with torch.no_grad():
        changed.blocks[1].mixer_norm.weight[-1] += 1e-9
    assert len({fingerprint(each) for each in (model, changed, *others)}) == 6
    before = weights_of(model)
    assert weights_of(model) is before
    model.load_state_dict(build("ms", seed=1).state_dict(), assign=True)
    assert not before.unchanged()
    assert weights_of(model) is not before


# -------------------------------------------------------------------------------------------------------------- files


def test_a_file_gives_back_every_bit(model, tmp_path):
    snapshot = model.read(PROMPTS)
    (tmp_path / "deep").mkdir()
    save_state(snapshot, tmp_path / "deep" / "chat.state")
    loaded = load_state(tmp_path / "deep" / "chat.state", model)
    assert_equal(loaded, snapshot)
    assert_equal(model.read(MORE, loaded), model.read(MORE, snapshot))
    assert os.listdir(tmp_path / "deep") == ["chat.state"]


def test_the_state_of_a_narrow_model_stays_wide(tmp_path):
    model = build("ms").bfloat16()
    save_state(model.read([1, 2, 3]), tmp_path / "s")
    loaded = load_state(tmp_path / "s", model)
    assert {x.dtype for x in leaves(loaded.state)} == {torch.float32}
    assert_equal(loaded, model.read([1, 2, 3]))


def test_the_size_of_a_file_does_not_depend_on_the_length(tmp_path):
    model = build("ms")
    for length in (2, 90):
        save_state(model.read(prompt_of(length)), tmp_path / str(length))
    small, large = ((tmp_path / name).stat().st_size for name in ("2", "90"))
    assert abs(large - small) < 16
    assert large == pytest.approx(snapshot_bytes(model), rel=0.1, abs=3000)


def test_files_that_cannot_be_used(tmp_path):
    from safetensors.torch import save_file

    model, file = build("ms"), tmp_path / "chat"
    save_state(model.read([1, 2]), file)
    whole = file.read_bytes()
    found = {"cut": whole[: len(whole) // 2], "short": whole[:5], "empty": b"", "text": b"Once upon a time, in a file"}
    for name, content in found.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            load_state(tmp_path / name, model)
    save_file({"x": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="not a state of format 1"):
        load_state(tmp_path / "weights", model)
    (tmp_path / "later").write_bytes(whole.replace(b'"version":"1"', b'"version":"7"'))
    with pytest.raises(ValueError, match="not a state of format 1"):
        load_state(tmp_path / "later", model)
    (tmp_path / "renamed").write_bytes(whole.replace(b'"state.1.', b'"state.8.'))
    with pytest.raises(ValueError, match="does not hold the state"):
        load_state(tmp_path / "renamed", model)
    for other in (build("ms", seed=1), build("sm"), build("ms").float()):
        with pytest.raises(ValueError, match="another model"):
            load_state(file, other)
    with pytest.raises(ValueError, match="no file"):
        load_state(tmp_path / "nowhere", model)


def test_nothing_is_half_written(tmp_path, monkeypatch):
    model, file = build("ms"), tmp_path / "chat"
    save_state(model.read([1]), file)
    before = file.read_bytes()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_state(model.read([1, 2]), file)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["chat"]
    with pytest.raises(ValueError, match="is a folder"):
        save_state(model.read([1]), tmp_path)
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere for chat; make it first"):
        save_state(model.read([1]), tmp_path / "nowhere" / "chat")
    assert os.listdir(tmp_path) == ["chat"]


def test_what_is_no_state_is_not_replaced(tmp_path):
    """A state is, of whatever version, and an empty file, as mktemp makes one."""
    from safetensors.torch import save_file

    model, state = build("ms"), tmp_path / "state"
    state.touch()
    save_state(model.read([1]), state)
    state.write_bytes(state.read_bytes().replace(b'"version":"1"', b'"version":"7"'))
    save_state(model.read([1, 2]), state)
    assert load_state(state, model).counts == (2,)
    (tmp_path / "text").write_text("Once upon a time, in a file")
    save_file({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    for name in ("text", "model.safetensors"):
        with pytest.raises(ValueError, match=rf"{name} is there and is no state, so it is not replaced; name another"):
            save_state(model.read([1]), tmp_path / name)
    assert (tmp_path / "text").read_text() == "Once upon a time, in a file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_what_is_no_file_is_not_replaced(tmp_path):
    """Such as /dev/null, where root could."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is there and is no state"):
        save_state(build("ms").read([1]), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_whose_state_it_is_has_to_be_known(tmp_path):
    """Known before the weights change, it can be saved after; and is refused with the new ones."""
    model = build("ms")
    known, twin = model.read([1]), build("ms")
    save_state(known, tmp_path / "known")
    with torch.no_grad():
        model.head.weight.mul_(2)
    save_state(known, tmp_path / "known")
    assert_equal(load_state(tmp_path / "known", twin), known)
    with pytest.raises(ValueError, match="another model"):
        load_state(tmp_path / "known", model)
    unknown = build("sm")
    late = unknown.read([1])
    with torch.no_grad():
        unknown.head.weight.mul_(3)
    with pytest.raises(ValueError, match="have changed"):
        save_state(late, tmp_path / "late")
    assert not (tmp_path / "late").exists()
