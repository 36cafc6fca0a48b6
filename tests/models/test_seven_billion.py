"""A checkpoint of the shape of xLSTM-7B on an ordinary machine: read, decoded, in memory. Takes minutes, and disk."""

import json
import os
import subprocess
import sys

import pytest
import torch

from exlstm import LM, preset
from exlstm.models.checkpoints.large import HUGGINGFACE
from exlstm.models.checkpoints.saving import write
from exlstm.models.quantized import stored_once

PARAMETERS = 6_865_424_896
GIB = 1 << 30

DECODE = """
import json, re, sys, time, torch
import exlstm
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
start = time.perf_counter()
model = exlstm.load(sys.argv[1], weights=None if sys.argv[2] == "as-saved" else sys.argv[2]).eval()
loaded, peak_loaded = time.perf_counter() - start, peak()
prompt = torch.randint(model.config.vocab_size, (40,), generator=torch.Generator().manual_seed(0)).tolist()
start = time.perf_counter()
(completion,) = exlstm.generate(model, [prompt], max_tokens=6)
print(json.dumps({
    "load_s": loaded, "peak_loaded": peak_loaded, "generate_s": time.perf_counter() - start, "peak": peak(),
    "tokens": completion.tokens, "dtype": str(model.embed.weight.dtype),
    "parameters": sum(x.numel() for x in model.parameters()), "state_bytes": model.state_bytes(),
}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights in transformers' layout, bfloat16, in shards; made a tensor at a time."""
    folder = tmp_path_factory.mktemp("7b")
    with torch.device("meta"):
        model = LM(preset("xlstm-7b")).bfloat16()
    like = stored_once(model)
    generator = torch.Generator().manual_seed(0)

    def take(name):
        x = torch.empty(like[name].shape, dtype=torch.float32)
        if "norm" in name:
            return x.fill_(1).bfloat16()
        return x.uniform_(-0.03, 0.03, generator=generator).bfloat16()

    write(folder, HUGGINGFACE, HUGGINGFACE.write(model.config), HUGGINGFACE.rules(model, None), like, take)
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("weights", "size"), [("as-saved", 2.0), ("int8", 1.03)])
def test_loads_and_decodes(folder, weights, size):
    """Peak memory: the weights (`size` bytes each) and what is small beside them, in loading and in generating."""
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) >= 6
    assert sum(os.path.getsize(shard) for shard in shards) > 2 * PARAMETERS
    run = [sys.executable, "-c", DECODE, str(folder), weights]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["dtype"] == "torch.bfloat16"
    assert len(found["tokens"]) == 6
    assert found["state_bytes"] == 134_480_896  # 128.25 MiB
    if weights == "as-saved":
        assert found["parameters"] == PARAMETERS
    assert found["peak_loaded"] < size * PARAMETERS + 1.5 * GIB
    assert found["peak"] < 20 * GIB
