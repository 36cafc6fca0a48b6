"""Peak memory of loading and converting checkpoints."""

import subprocess
import sys

import pytest
import torch
from checkpoint_cases import build

from exlstm import LM, LMConfig, convert, save
from exlstm.models.pattern import lm_from_pattern

MEASURE = """
import re, sys, torch
import exlstm
from exlstm.models.checkpoints import loading
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
exlstm.load(sys.argv[2])  # what is imported and allocated at first
open("/proc/self/clear_refs", "w").write("5")
before = peak()
{run}
print(peak() - before)
"""


def measured(tmp_path, run, *arguments):
    """Peak memory of some code beyond what the process had, in bytes; files that are mapped count while they are."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE.replace("{run}", run), *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[-1])


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of 190 MB in float32, of which a tensor has 17 MB, in transformers' layout; and a tiny one."""
    folder = tmp_path_factory.mktemp("wide")
    config = LMConfig(**{**vars(lm_from_pattern("M" * 16, vocab_size=8192, width=512)), "logit_cap": 30.0})
    with torch.device("meta"):
        model = LM(config)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    save(model, folder / "own")
    save(build("M"), folder / "tiny")
    convert(folder / "own", folder / "in", layout="huggingface", shard_bytes=40 << 20)
    return folder, sum(x.nbytes for x in model.state_dict().values()), 8192 * 512 * 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("name", "dtype"), [("in", "None"), pytest.param("own", "torch.bfloat16", marks=pytest.mark.slow)]
)
def test_peak_memory_of_loading(wide, name, dtype):
    """The weights, one tensor, and no more of the mapped file than is let go of again; of shards, and of one file."""
    folder, size, tensor = wide
    size = size // 2 if "16" in dtype else size
    used = measured(folder, f"model = exlstm.load(sys.argv[1], dtype={dtype})", folder / name, folder / "tiny")
    assert size < used < size + 3 * tensor + loading_slack()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_of_converting(wide, tmp_path):
    """About one shard, of a model that is several times as large."""
    folder, size, tensor = wide
    shard = 40 << 20
    run = f"exlstm.convert(sys.argv[1], sys.argv[3], dtype=torch.float32, shard_bytes={shard})"
    used = measured(folder, run, folder / "in", folder / "tiny", tmp_path / "out")
    assert used < shard + 3 * tensor + loading_slack()
    assert used < size


def loading_slack():
    """What of the mapped file may count at a time."""
    from exlstm.models.checkpoints.files import OPEN_BYTES

    return OPEN_BYTES
