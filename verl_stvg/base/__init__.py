"""What every floor stands on: starting Python, locks and whole files, bounded JSON, extras, exit statuses, names."""
