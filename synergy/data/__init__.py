"""Questions on their way to each framework: one record type in, LLaMA-Factory, verl and VLMEvalKit files out."""


def main() -> int:
    """The verb ``data`` (synergy/data/verb.py)."""
    from synergy.data import verb

    return verb.main()
