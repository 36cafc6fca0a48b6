"""Compiled kernels on disk: found again, not when anything they were made from has changed, and never in the way."""

import errno
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from numba.core.caching import CompileResultCacheImpl, InTreeCacheLocator

from exlstm.runtime.cpu import jit
from exlstm.runtime.cpu.launch import launch

KERNEL = """
from exlstm.runtime.cpu.kernel import F64, kernel
from exlstm.runtime.cpu.memory import double_at, put_double
from numba_test_helper import factor

@kernel()
def sum_scaled(first: int, last: int, I: int, x_I: F64, scale: float, y: F64) -> None:
    total = 0.0
    for i in range(I):
        total += factor() * double_at(x_I + 8 * i) / scale
    put_double(y, total)

@kernel()
def another(first: int, last: int, y: F64) -> None:
    put_double(y, factor())
"""
HELPER = """
from numba import njit

@njit(inline="always")
def factor():
    return {factor}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a kernel's page and a page of which it inlines a function; nothing outside is written."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [InTreeCacheLocator])
    (tmp_path / "numba_test_kernel.py").write_text(KERNEL)
    (tmp_path / "numba_test_helper.py").write_text(HELPER.format(factor=2.0))
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_said_yet():
    jit.announce.cache_clear()


def load(folder):
    """The page of kernels as a fresh process would get it."""
    for name in ("numba_test_helper", "numba_test_kernel"):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        # not from Python's own cache of bytecode: files here are edited within a second
        exec(compile((folder / f"{name}.py").read_text(), spec.origin, "exec"), vars(sys.modules[name]))
    return sys.modules["numba_test_kernel"]


def run(page, scale=1.0):
    y = torch.empty(1).double()
    launch(page.sum_scaled, 1, 3, torch.ones(3).double(), scale, y, cost=0.0)
    return y.item()


def run_another(page):
    y = torch.empty(1).double()
    launch(page.another, 1, y, cost=0.0)
    return y.item()


def from_disk(page):
    return page.sum_scaled.compiled.cache_hits


def files(folder):
    return sorted((folder / "__pycache__").glob("*.nbc"))


def test_the_next_process_finds_the_kernel(folder, caplog):
    first = load(folder)
    assert files(folder) == [], "nothing is compiled before the first call"
    assert (run(first), from_disk(first), len(files(folder))) == (6.0, 0, 1)
    assert [(r.name, r.levelno) for r in caplog.records] == [("exlstm", logging.WARNING)]
    assert "compiling its CPU kernels" in caplog.text
    assert "next start finds them" in caplog.text
    caplog.clear()
    jit.announce.cache_clear()
    second = load(folder)
    assert (run(second), from_disk(second), len(files(folder))) == (6.0, 1, 1)
    assert caplog.records == [], "nobody waits, so there is nothing to say"


def test_it_says_so_once(folder, caplog):
    page = load(folder)
    run(page)
    assert run_another(page) == 2.0
    assert len(files(folder)) == 2
    assert len(caplog.records) == 1


def test_division_by_zero_is_infinite(folder):
    assert run(load(folder), 0.0) == float("inf")


@pytest.mark.parametrize("page", ["numba_test_helper", "numba_test_kernel"])
def test_edited_sources_are_compiled_anew(folder, page):
    run(load(folder))
    before = files(folder)
    path = folder / f"{page}.py"
    path.write_text(path.read_text().replace("2.0", "5.0").replace("total = 0.0", "total = 9.0"))
    kernel = load(folder)
    assert (run(kernel), from_disk(kernel)) == (15.0, 0)
    assert len(files(folder)) == 1, "what the old sources have left is removed"
    assert files(folder) != before


@pytest.mark.parametrize("shared", ["math", "jit"])
def test_the_shared_pages_count_as_sources(monkeypatch, tmp_path, folder, shared):
    """Those of `runtime.cpu`: their functions are inlined everywhere."""
    kernel = load(folder).sum_scaled.function
    ops = tmp_path / "ops"
    ops.mkdir()
    for name in ("math.py", "jit.py"):
        (ops / name).write_text(Path(jit.__file__).with_name(name).read_text())
    monkeypatch.setattr(jit, "__file__", str(ops / "jit.py"))
    before = jit.sources(kernel)
    with (ops / f"{shared}.py").open("a") as page:
        page.write("# edited\n")
    assert jit.sources(kernel) != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda old: old[: len(old) // 2],
        lambda old: old[:-9] + b"?" + old[-8:],
        lambda old: b"",
        lambda old: bytes([old[0] ^ 1]) + old[1:],
    ],
)
def test_a_damaged_file_is_replaced(folder, damage):
    run(load(folder))
    (path,) = files(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    kernel = load(folder)
    assert (run(kernel), from_disk(kernel)) == (6.0, 0)
    again = load(folder)
    assert (run(again), from_disk(again), len(files(folder))) == (6.0, 1, 1)


def test_without_a_writable_folder(folder, caplog):
    (folder / "__pycache__").write_text("in the way")
    assert run(load(folder)) == 6.0
    assert "no writable folder" in caplog.text


def test_the_folder_goes_away_later(folder):
    page = load(folder)
    run(page)
    for path in (folder / "__pycache__").iterdir():
        path.unlink()
    (folder / "__pycache__").rmdir()
    (folder / "__pycache__").write_text("in the way")
    assert run_another(page) == 2.0


def test_a_full_disk(folder, monkeypatch):
    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert run(load(folder)) == 6.0
    assert list((folder / "__pycache__").iterdir()) == [], "no halves are left behind"


def test_another_cpu_and_other_types_are_other_files(folder):
    cache = jit.CompiledForms(load(folder).sum_scaled.function)

    def path(*types, cpu="this"):
        class Codegen:
            def magic_tuple(self):
                return ("x86_64-linux", cpu, "+avx2")

        return cache.files.path(cache.key(types, Codegen()))

    assert path("float32") == path("float32")
    assert len({path("float32"), path("float32", cpu="other"), path("float64"), path("float32", "float32")}) == 4


def test_processes_that_save_at_once_do_not_mix_their_kernels(tmp_path):
    one, other = (jit.CompiledFiles(tmp_path, "kernel", "stamp") for _ in range(2))
    one.save("a", "for a")
    other.save("b", "for b")
    one.save("b", "for b, too")
    assert [other.load(key) for key in "ab"] == ["for a", "for b, too"]
    with pytest.raises(OSError, match="No such file"):
        one.load("c")


IN_A_PROCESS = """
import sys, torch, exlstm
from exlstm.ops.mlstm import mlstm
from exlstm.ops.slstm import slstm
slstm(torch.ones(1, 2, 1, 4, 2), None, backend="numba")
mlstm(*(torch.ones(1, 1, 1, 2) for _ in range(3)), *(torch.ones(1, 1, 1) for _ in range(2)), backend="numba")
print("torch._dynamo" in sys.modules)
"""


def test_kernels_do_not_import_torchs_compiler():
    """It takes twice as long as all that a first use may take."""
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"


WITHOUT_JIT = """
import torch, exlstm
lm = exlstm.LM(exlstm.lm_from_pattern("msMal", vocab_size=8, width=16))
print(exlstm.explain(lm, length=2))
tokens = torch.tensor([[1, 2]])
lm(tokens)[0].sum().backward()
print(len(exlstm.generate(lm.eval(), [[1, 2]], max_tokens=3)), "generated")
lm.blocks[0].mixer.backend = "numba"
lm(tokens)
"""


@pytest.mark.slow
def test_without_its_compiler_numba_is_not_used():
    """Numba's switch for debugging: kernels made of LLVM's instructions are no Python."""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JIT], capture_output=True, text=True, check=False, env=environment
    )
    why = "Numba's compiler is switched off by NUMBA_DISABLE_JIT"
    assert f"not numba: {why}" in done.stdout
    assert "  numba  " not in done.stdout
    assert done.stdout.endswith("1 generated\n"), done.stderr
    error = done.stderr.splitlines()[-1]
    assert error == f"ValueError: backend 'numba' of mlstm cannot run: {why}; use backend='auto'."
