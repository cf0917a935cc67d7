"""What leaves the house: the artifact folder and exports for other runtimes."""
