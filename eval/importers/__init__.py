"""Files of other programs, brought to the rows that they answer."""
