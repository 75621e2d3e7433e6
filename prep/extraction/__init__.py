"""Archives into folders."""
