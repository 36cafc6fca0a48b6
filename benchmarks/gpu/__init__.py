"""The cases on a GPU: one file per question, in the order in which they are measured.

Each has `works(setup)`, a generator of its measurements (see `work`); nothing is built before its turn. `supervise`
runs the cases in processes of their own.
"""

CASES = ("mlstm_op", "slstm_op", "attention", "decode")
