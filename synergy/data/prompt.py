"""The text of a query. One place, so that SFT, RL, sampling and evaluation ask in the same words."""

from __future__ import annotations

from collections.abc import Mapping


def query(question: str, choices: Mapping[str, str] | None = None, instruction: str | None = None) -> str:
    """The text after the image(s).

    With choices it is VLMEvalKit's stock multiple-choice prompt (vlmeval/dataset/image_mcq.py, ImageMCQDataset.build_prompt);
    the instruction stands on its own last line.
    """
    text = question
    if choices:
        options = "".join(f"{letter}. {content}\n" for letter, content in choices.items())
        text = f"Question: {question}\nOptions:\n{options}Please select the correct answer from the options above. \n"
    return f"{text.rstrip()}\n{instruction}" if instruction else text
