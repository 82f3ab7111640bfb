"""What verl's trainer loads: rows, agent loop, workers, rewards, masks, draws, metrics, resume."""
