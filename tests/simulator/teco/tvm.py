"""Stands where the vendor's tvm is, of which the engine's example shows its import alone."""
