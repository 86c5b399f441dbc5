"""What the loop in train.py stands on: what it draws, what it keeps, the optimiser, the device."""
