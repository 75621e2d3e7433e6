"""ImageNet-like data as plain WebDataset shards: written, indexed, checked and streamed exactly."""
