"""Video as the model sees it: which frames, at which size, at which positions. Nothing here imports verl."""
