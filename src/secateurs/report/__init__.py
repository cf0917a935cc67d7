"""What a run did, in words and tables: the data comes first, the drawing after."""
