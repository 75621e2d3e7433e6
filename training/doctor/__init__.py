"""What is wrong with the devices of this machine, and between machines."""
