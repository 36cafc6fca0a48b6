"""Floor 5.4: models as files that run without exlstm, by torch.export and ONNX. `export` is the entry."""
