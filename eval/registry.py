"""The one table of benchmark kinds: which dataset class of `eval.datasets` serves each.

Kept apart from the classes so that a spec can be checked without the seconds that importing VLMEvalKit takes.
"""

KINDS: dict[str, str] = {
    "open": "SynergyOpen",
    "choice": "SynergyChoice",
    "mathvista": "SynergyMathVista",
    "mathvision": "SynergyMathVision",
    "mathverse": "SynergyMathVerse",
    "mmmu": "SynergyMMMU",
    "mmstar": "SynergyMMStar",
}
