"""What a federation does when its processes are killed, and its machines, disks, clocks and networks fail."""
