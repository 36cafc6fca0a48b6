"""The mLSTM on a GPU, in Triton."""
