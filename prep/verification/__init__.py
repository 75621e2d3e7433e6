"""Archives and folders against what they should be."""
