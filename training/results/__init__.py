"""What a trained network is worth: evaluating it, comparing two, asking it about pictures."""
