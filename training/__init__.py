"""Training ResNets from shards: devices, recipes, the loop, exact evaluation, export."""
