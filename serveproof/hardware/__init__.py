"""What machine this is: its key, its lease, its clocks, its measured ceilings."""
