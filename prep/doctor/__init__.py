"""What a machine and a data folder have and lack."""
