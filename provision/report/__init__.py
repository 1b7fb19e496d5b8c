"""One renderer per format: each takes a Report and returns text."""
