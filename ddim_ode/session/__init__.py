"""The room where model and solver meet: wishes become a plan, a plan and pictures become latents, and back.

``plan`` decides, ``session`` does; nothing outside of this room imports ``solvers``. Importing it is cheap: torch
comes with ``session``, when that is imported.
"""
