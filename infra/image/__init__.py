"""What an image is made of: locked files, and what is taken away again."""
