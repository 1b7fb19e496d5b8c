"""One adapter per framework: version, devices, known answer. Run under that framework's own Python."""
