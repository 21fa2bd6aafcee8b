"""``llamafactory-cli train`` with one addition: templates whose responses have no end of turn.

Why: the progressive recipe trains on the beginning of a trace. LLaMA-Factory closes every response with the template's end of
turn (``<|im_end|>``) and trains on it, which would teach the model to stop in mid-thought; no option leaves it out.
How: each template is registered once more as ``<name>_open_ended``, with the bare content as the assistant's slot.
Holds for: llamafactory 0.9.5 (data/template.py: TEMPLATES, Template.format_assistant). Usage: this file, then the YAML.
"""

from __future__ import annotations

import dataclasses

SUFFIX = "_open_ended"


def register() -> None:
    """Adds the open-ended twin of every registered template."""
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import TEMPLATES

    for name, template in list(TEMPLATES.items()):
        if not name.endswith(SUFFIX):
            bare = StringFormatter(slots=["{{content}}"])
            TEMPLATES[name + SUFFIX] = dataclasses.replace(template, format_assistant=bare)


if __name__ == "__main__":
    register()
    from llamafactory.train.tuner import run_exp

    run_exp()
