"""Compiles the mLSTM's step for NVIDIA GPUs, which needs none; run by `test_mlstm_step_triton` in its own process.

Prints a line for each variant: capability, dtype, K, V, and the bytes of shared memory.
"""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile  # noqa: A004

from exlstm.ops.mlstm.triton.step import blocks, step_kernel

# dtype, rows and heads, K, V, whether all variants are the usual ones: as in the 7B, and an odd one
SIZES = [("bf16", 8, 256, 512, True), ("fp32", 4, 24, 40, False)]


def kinds(constants, kind):
    """The type of every argument."""
    for name in step_kernel.arg_names:
        if name in constants:
            yield name, "constexpr"
        elif name == "H" or name[1:2] == "_" or name == "reset_b":
            yield name, "i32"
        elif name in ("scale", "eps"):
            yield name, "fp32"
        else:
            yield name, {"reset": "*i1"}.get(name, f"*{kind}" if name in ("q", "k", "v", "h") else "*fp32")


def compiled(capability, kind, M, K, V, usual):
    BK, BV = blocks(M, K, V)
    # numbers next to each other and addresses of whole vectors, as what a projection returns
    constants = {"K": K, "V": V, "BK": BK, "BV": BV, "EXP_GATE": usual, "NORMALIZE": usual, "RESETS": not usual,
                 "q_k": 1, "k_k": 1, "v_v": 1}  # fmt: skip
    places = {name: (n,) for n, name in enumerate(step_kernel.arg_names)}
    whole = {places[name]: [["tt.divisibility", 16]] for name in ("q", "k", "v", "c0", "n0", "c1", "n1", "h")}
    source = ASTSource(
        fn=step_kernel,
        signature=dict(kinds(constants, kind)),
        constexprs={places[name]: value for name, value in constants.items()},
        attrs=whole,
    )
    return compile(source, target=GPUTarget("cuda", capability, 32))


if __name__ == "__main__":
    for capability in (80, 90):
        for kind, M, K, V, usual in SIZES:
            found = compiled(capability, kind, M, K, V, usual)
            print(capability, kind, K, V, found.metadata.shared)
