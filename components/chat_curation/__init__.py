"""Given chats and preference pairs, read, masked, without copies and evaluation questions."""
