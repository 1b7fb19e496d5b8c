"""What runs on a host: it measures and reports, and never judges. Standard library only, Python 3.9+."""
