"""Stands where the vendor's passes over a graph are; what runs here reads the graph as it is."""
