"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# Everywhere as in CI: no deadlines, and the same examples every time. Others: --hypothesis-profile=default
settings.load_profile("ci")
