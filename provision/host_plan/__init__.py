"""What `bringup plan` says of a host: what is there, what fits together, what would change, what blocks it."""
