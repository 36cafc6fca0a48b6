"""Which configuration the mLSTM's kernels get: the rule's, or what `exlstm tune` measured on this kind of GPU."""

import json

import pytest
import torch

from exlstm.ops.mlstm.triton.config import Config, Launch, config_of, default_config, key_of, work_of
from exlstm.runtime import cache

pytest.importorskip("triton", reason="Triton has no wheel for this system")
CPU = torch.device("cpu")
WORK = work_of(torch.bfloat16, 128, 256, 64)
FOUND = Config(128, 2, *(Launch(16 * n, 32, 4, n) for n in (1, 2, 4, 8)))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    config_of.cache_clear()
    yield tmp_path
    config_of.cache_clear()


def test_what_was_measured_is_used_unless_a_chunk_length_is_given():
    before = config_of(WORK, CPU, 0)
    assert before == default_config(WORK, 227 << 10, 128)
    cache.remember("mlstm_triton", key_of(WORK, "interpreter"), FOUND)
    config_of.cache_clear()
    assert config_of(WORK, CPU, 0) == FOUND
    assert config_of(WORK, CPU, 64) == default_config(WORK, 227 << 10, 64)
    assert config_of(WORK._replace(few_heads=True), CPU, 0) != FOUND, "other work"


@pytest.mark.parametrize("damage", [3, [], [64], [64, 1, [1, 2], [1], [2], [3]], {"tile": 64}, "x"])
def test_damage_is_passed_over(damage, folder):
    (folder / "mlstm_triton.json").write_text(json.dumps({key_of(WORK, "interpreter"): damage}))
    assert config_of(WORK, CPU, 0) == default_config(WORK, 227 << 10, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chunk", [16, 32, 64, 128, 256])
def test_the_rule_cuts_chunks_into_tiles(dtype, chunk):
    for room in (64 << 10, 99 << 10, 163 << 10, 227 << 10):
        for merged in (8, 1024):
            config = default_config(work_of(dtype, 72, 300, merged), room, chunk)
            assert config.tile * config.parts == chunk
            assert config.tile <= (64 if room > 64 << 10 or dtype == torch.bfloat16 else 32)


def test_few_heads_get_more_programs():
    few, many = (default_config(work_of(torch.bfloat16, 256, 512, merged), 227 << 10, 128) for merged in (8, 64))
    assert (few.state.block_k, few.state.block_v) == (64, 64)
    assert (many.state.block_k, many.state.block_v) == (128, 128)


def test_tuning_keeps_the_fastest(folder, monkeypatch):
    """A clock that likes one tile and one launch of each kernel; the kernels really run, in the interpreter."""
    from triton.runtime.errors import OutOfResources

    from exlstm.ops.mlstm.triton import tune as triton_tune

    liked = Launch(16, 32, 8, 3)
    monkeypatch.setattr(triton_tune, "CUTS", ((16, 1), (16, 2), (32, 1)))
    monkeypatch.setattr(triton_tune, "launches", lambda K, V: [Launch(16, 16, 4, 2), liked])
    ran, said = [], []

    def clock(run):
        (config,) = run.args
        if not ran:
            ran.append(run())
        if config.tile == 32:
            raise OutOfResources(1, 0, "shared memory")
        return 10 * config.parts - sum(launch == liked for launch in config[2:])

    file = triton_tune.tune(1, 20, 1, 8, 24, torch.float32, CPU, say=said.append, clock=clock)
    best = config_of(work_of(torch.float32, 8, 24, 1), CPU, 0)
    assert file == folder / "mlstm_triton.json"
    assert (best.tile, best.parts) == (16, 1)
    assert best[2:] == (liked,) * 4
    assert said[2].endswith("do not fit")
    assert "ms forward" in said[0]
