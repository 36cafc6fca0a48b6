"""What a model has read, as a value: snapshots, rows of states, fingerprints of weights, files."""
