"""Merging: the look at two models before they are merged. The merge itself is mergekit's (``synergy/stages/merge.py``)."""
