"""The sLSTM on a GPU, in Triton."""
