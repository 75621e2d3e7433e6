"""What lies somewhere, in numbers and as a picture."""
