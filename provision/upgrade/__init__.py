"""`bringup upgrade`: a driver upgrade as a transaction per host, rolled over a fleet in waves, with a way back."""
