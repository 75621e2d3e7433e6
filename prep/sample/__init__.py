"""Made-up archives of ILSVRC2012's shape."""
