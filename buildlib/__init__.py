"""Netboot images from declarative recipes: build, prove, publish, revert."""
