"""The VLMEvalKit adapter: runs in the evaluation environment, spoken to through files and an OpenAI-compatible endpoint.

`python eval/run.py SPEC.json` is the only entry point; the driver never imports this package.
"""
