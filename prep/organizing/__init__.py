"""Flat validation images into class folders."""
