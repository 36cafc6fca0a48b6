"""The machine that everything runs on: backends, threads, captured graphs, files. Knows no xLSTM; see README.md."""
