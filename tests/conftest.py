"""Settings for every room's tests."""

from __future__ import annotations

from hypothesis import settings

# No deadline, since the machine is shared; and the same examples on every run.
settings.register_profile("project", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("project")
