"""What a run leaves behind, where it came from, what it cost, and how it is read again."""
