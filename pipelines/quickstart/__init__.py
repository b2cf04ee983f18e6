"""The demo domain: a bilingual (English, Korean) text-to-SQL assistant for a small shop, made from a seed."""
