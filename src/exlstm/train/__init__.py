"""Floor 4b: from settings to a trained model in a run folder."""
