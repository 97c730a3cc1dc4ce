"""One module per question. Each has `run(arguments) -> figures`: a dict that goes into the JSON file as it is."""
