"""States of models as values: snapshots, their rows and files, and fingerprints of the weights that made them."""
