"""One check per file; the file is the registration."""
