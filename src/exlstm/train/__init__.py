"""Floor 5b: training, from settings to a model in the folder of a run (`run_folder`)."""
