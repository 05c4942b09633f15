"""Readers of captures and data sets: whatever the user has, into cameras and images."""
