"""What a run is and was trained on, looked at without training: steps, differences, faults of a
mix."""
