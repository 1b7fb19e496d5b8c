"""Ways to run a program on a host: over SSH, or here."""
