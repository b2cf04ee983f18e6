"""Seeds and documents to verified chats and prompts."""
