"""What every test starts from: one thread, no telemetry, nothing left in the user's MLflow store."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, or it is not read
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
