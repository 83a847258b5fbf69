"""Apps: many containers described by one Compose file, made and kept as it says."""
