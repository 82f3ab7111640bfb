"""Starting a run: checks before it, the processes of it, the plan of its cost."""
