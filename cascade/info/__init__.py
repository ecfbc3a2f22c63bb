"""What a cascade folder holds, and what its stages take of a device's memory, for people."""
