"""From the files of a study to its comparison and its report: one HTML file that needs nothing else."""
