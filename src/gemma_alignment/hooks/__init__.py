"""What happens around a run: checks before it, its record on disk, its runs in MLflow."""
