"""What every room needs: errors, registries, units, seeds, files that are written whole or not at all."""
