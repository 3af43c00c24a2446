"""Tests: each module has its own; those marked `integration` build and boot what is real."""
