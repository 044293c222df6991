"""Trained models side by side: outliers, explicit and implicit scale, loss and monitor curves."""
