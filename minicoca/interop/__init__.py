"""Weights and configurations of other projects, to and from ours."""
