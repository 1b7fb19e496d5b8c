"""Ways to read a host. Parsers take text; units are converted here."""
