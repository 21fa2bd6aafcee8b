"""A Ray cluster under the driver (``cluster=ray``): what stages need of it, how it is reached, what it lacks.

``synergy submit`` sends the driver there as a Ray job (``jobs``), after a short job (``probe``) has told what the nodes are and
nothing is lacking (``lacks``). In the job, every stage claims nodes, GPUs and memory (``needs``) and waits until they are free
(``room``); verl attaches to the same cluster, and all else is started on its nodes by ``launch/plugins/ray_nodes.py``
(``attach``). Ray is imported by ``jobs``, ``probe`` and ``room`` only, when they are called.
"""
