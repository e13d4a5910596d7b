"""Metrics: functions of texts, features and images, which know nothing of models."""
