"""What fits together: cards, driver branches, kernel modules, CUDA. Data with sources, and pure look-ups."""
