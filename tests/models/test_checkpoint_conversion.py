"""Converted checkpoints: shards, dtypes and fewer bits."""

import itertools
import json

import pytest
import torch
from checkpoint_cases import build, same
from safetensors.torch import load_file, save_file

import exlstm
from exlstm import convert, load, save


def test_shards(tmp_path):
    """An index names them; a save over them leaves none behind; a missing one is named."""
    model = build("mMs")
    save(model, tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", shard_bytes=20_000)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    shards = [name for name in files if name.startswith("model-")]
    assert len(shards) > 3
    assert files == ["config.json", *shards, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in model.state_dict().values())
    assert set(index["weight_map"].values()) == set(shards)
    assert same(load(tmp_path / "out"), model)
    check_sizes([tmp_path / "out" / name for name in shards], 20_000)
    (tmp_path / "out" / shards[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"{shards[1]} is missing, which holds a part of the weights; copy or"):
        load(tmp_path / "out")
    save(build("s"), tmp_path / "out", overwrite=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


def check_sizes(files, most):
    """No file is too full, unless by one tensor; and no two that follow each other fit into one."""
    sizes = [[x.nbytes for x in load_file(file).values()] for file in files]
    assert all(sum(of_file) <= most or len(of_file) == 1 for of_file in sizes)
    assert all(sum(one) + sum(other) > most for one, other in itertools.pairwise(sizes))


def test_shards_are_of_what_is_written(tmp_path):
    """Their size is that of the new dtype, not of the one that is read."""
    save(build("mMs"), tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", dtype=torch.bfloat16, shard_bytes=20_000)
    check_sizes(sorted((tmp_path / "out").glob("*.safetensors")), 20_000)


def test_more_than_ten_counted_shards(tmp_path):
    """model_10 comes after model_9; one of the middle that is missing is named, and one tensor is in one of them."""
    model = build("MMM")
    save(model, tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", layout="xlstm-large", shard_bytes=10_000)
    count = len(list((tmp_path / "out").glob("model_*.safetensors")))
    assert count > 10
    assert same(load(tmp_path / "out"), model)
    save_file({"embedding.weight": torch.ones(11, 32)}, tmp_path / f"out/model_{count}.safetensors")
    with pytest.raises(ValueError, match=rf"embedding.weight is in both .*model_0.* and .*model_{count}.*; remove wh"):
        load(tmp_path / "out")
    (tmp_path / "out/model_3.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model_3.safetensors is missing, which holds a part of the weights; copy"):
        load(tmp_path / "out")


def test_shards_without_their_index(tmp_path):
    save(build("mM"), tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", shard_bytes=20_000)
    (tmp_path / "out/model.safetensors.index.json").unlink()
    with pytest.raises(
        ValueError, match=r"has no model.safetensors.index.json, which says what shards there are; copy"
    ):
        load(tmp_path / "out")


def test_a_conversion_onto_itself_is_refused(tmp_path):
    save(build("m"), tmp_path)
    with pytest.raises(ValueError, match=r"is the model to convert; name another folder for the result"):
        convert(tmp_path, tmp_path / ".", dtype=torch.bfloat16)
    load(tmp_path)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_quantised_while_loading(tmp_path, bits, tied):
    """What `quantize` makes of the loaded model, bit for bit: by `load`, by `convert`, and loaded again."""
    save(build("msM", tie_embeddings=tied), tmp_path / "in")
    want = exlstm.quantize(load(tmp_path / "in"), bits)
    convert(tmp_path / "in", tmp_path / "out", weights=bits, shard_bytes=20_000)
    for got in (load(tmp_path / "in", weights=bits), load(tmp_path / "out"), load(tmp_path / "out", weights=bits)):
        assert same(got, want)


def test_quantised_from_what_was_saved(tmp_path):
    """Not from weights that were rounded to another dtype first; scales are rounded to no dtype."""
    save(build("mM"), tmp_path)
    want = exlstm.quantize(load(tmp_path), "int8").to(torch.bfloat16)
    got = load(tmp_path, weights="int8", dtype=torch.bfloat16)
    assert same(got, want)
    assert got.embed.weight.dtype == torch.bfloat16
    assert got.head.scale_N.dtype == torch.float32


def test_a_foreign_model_quantised_on_the_way(tmp_path):
    model = build("MM")
    save(model, tmp_path / "in", layout="huggingface")
    convert(tmp_path / "in", tmp_path / "out", weights="int8")
    assert same(load(tmp_path / "out"), exlstm.quantize(model, "int8"))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (
            lambda folder: load(folder / "int8", weights="int4"),
            r"is quantised already \(int8\); use the original for int4",
        ),
        (lambda folder: load(folder / "int8", weights="int2"), r"weights are 'int2'; they can be one of int8, int4"),
        (
            lambda folder: load(folder / "int8", dtype=torch.int8),
            r"dtype is torch.int8; it has to be one of floating num",
        ),
        (
            lambda folder: convert(folder / "int8", folder / "out", layout="classic"),
            r"are quantised \(int8\), which the la",
        ),
        (
            lambda folder: save(load(folder / "int8"), folder / "out", layout="classic"),
            r"are quantised \(int8\), which th",
        ),
    ],
)
def test_bits_that_do_not_go_together(tmp_path, run, message):
    save(exlstm.quantize(build("ms"), "int8"), tmp_path / "int8")
    with pytest.raises(ValueError, match=message):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_foreign_model_has_one_dtype(tmp_path):
    """Norms and gates that were saved in float32 beside bfloat16 come in the embedding's, or in what is asked for."""
    save(build("MM"), tmp_path, layout="huggingface")
    tensors = {
        name: x if "norm" in name or "gate" in name else x.bfloat16()
        for name, x in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert {x.dtype for x in load(tmp_path).state_dict().values()} == {torch.bfloat16}
    assert {x.dtype for x in load(tmp_path, dtype=torch.float64).state_dict().values()} == {torch.float64}
