"""Where samples come from: the ILSVRC2012 archives, class folders, their labels and names."""
