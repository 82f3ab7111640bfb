"""Objects in videos: detected, tracked with SAM 2, numbered, and matched with the annotated target.

detect   boxes of a frame                               (`Detector`)
track    detections to masks with IDs, frame by frame   (`Tracks`)
render   numbers drawn on the video
target   annotated tube to ID, and an ID back to a tube
"""
