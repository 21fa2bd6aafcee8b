"""Questions on their way to each framework: one record type in, LLaMA-Factory, verl and VLMEvalKit files out."""
