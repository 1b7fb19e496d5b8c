"""Programs run by the host's framework Python; never imported by the bundle's own process."""
