"""The cases on a CPU: one file per question, each with `run(bench)`, in the order in which they are measured."""

CASES = (
    "startup",
    "memory",
    "slstm_op",
    "mlstm_op",
    "train_step",
    "train_llama",
    "decode",
    "mixers_train",
    "mixers_length",
    "mixers_decode",
    "mixers_memory",
    "mixers_beside_mlstm",
    "drop_in",
    "control_replay",
    "export",
    "contention",
)
# run by name alone, until their results are committed
BY_NAME = ("serve",)
